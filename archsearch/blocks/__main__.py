"""Write `catalogue.json`: what the shipped blocks declare and cost, for use without torch."""

from __future__ import annotations

import json
from pathlib import Path

from archsearch.catalogue import catalogue

target = Path(__file__).with_name("catalogue.json")
target.write_text(json.dumps(catalogue(), indent=1, sort_keys=True) + "\n")
