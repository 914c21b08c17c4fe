import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from archsearch.block import block_class
from archsearch.catalogue import BlockInfo, catalogue

ROOT = Path(str(files("archsearch")))


def test_the_committed_catalogue_says_what_the_classes_say():
    kept = json.loads((files("archsearch.blocks") / "catalogue.json").read_text())
    rerun = "stale: run `python -m archsearch.blocks`"
    assert kept == json.loads(json.dumps(catalogue())), rerun
    for name, entry in kept.items():
        assert BlockInfo.from_json(entry["info"]) == block_class(name).info, rerun


def test_a_change_in_what_a_block_is_made_of_makes_its_entry_stale(tmp_path):
    package = tmp_path / "archsearch"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = fresh(tmp_path)
    assert before == dict.fromkeys(before, True)
    with (package / "layers" / "activations.py").open("a") as file:
        file.write("\nGRID = 2\n")
    changed = {name for name, kept in fresh(tmp_path).items() if not kept}
    assert "swiglu" in changed  # counts the parameters of its activation there
    assert "attention" not in changed
    with (package / "blocks" / "mamba2.py").open("a") as file:
        file.write("\nTAPS = 2\n")
    assert "mamba2" in {name for name, kept in fresh(tmp_path).items() if not kept}
    with (package / "cost.py").open("a") as file:
        file.write("\nBYTES = 8\n")
    assert not any(fresh(tmp_path).values())


def fresh(folder):
    """For each block of the package in `folder`, whether its entry is used."""
    script = """
import json
from importlib.resources import files
from archsearch.catalogue import found, source_hash

kept = json.loads((files("archsearch.blocks") / "catalogue.json").read_text())
hashes = {name: source_hash(found("blocks")[name].module) for name in kept}
print(json.dumps({name: kept[name]["source"] == hashes[name] for name in kept}))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT.parent)])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_shipped_blocks_are_described_without_torch():
    script = """
import sys
from archsearch.catalogue import block_costs, block_info, block_names, found, source_hash

shipped = [name for name in block_names() if source_hash(found("blocks")[name].module)]
described = [block_info(name).summary for name in shipped]
assert len(described) >= 4 and all(described), described
assert all(cost for name in shipped for cost in block_costs(name))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
