"""Write `catalogue.json`: what the shipped blocks declare, for use without torch."""

from __future__ import annotations

import json
from pathlib import Path

from archsearch.catalogue import found, source_hash

entries = {
    name: {"source": source, "info": point.load().info.to_json()}
    for name, point in sorted(found("blocks").items())
    if (source := source_hash(point.module))
}
target = Path(__file__).with_name("catalogue.json")
target.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
