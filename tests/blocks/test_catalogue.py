import json
import subprocess
import sys
from importlib.resources import files

from archsearch.block import block_class
from archsearch.catalogue import BlockInfo, found, source_hash


def test_the_committed_catalogue_says_what_the_classes_say():
    kept = json.loads((files("archsearch.blocks") / "catalogue.json").read_text())
    shipped = {n: s for n, p in found("blocks").items() if (s := source_hash(p.module))}
    rerun = "stale: run `python -m archsearch.blocks`"
    assert {name: entry["source"] for name, entry in kept.items()} == shipped, rerun
    for name, entry in kept.items():
        assert BlockInfo.from_json(entry["info"]) == block_class(name).info, rerun


def test_shipped_blocks_are_described_without_torch():
    script = """
import sys
from archsearch.catalogue import block_info, block_names, found, source_hash

shipped = [name for name in block_names() if source_hash(found("blocks")[name].module)]
described = [block_info(name).summary for name in shipped]
assert len(described) >= 4 and all(described), described
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
