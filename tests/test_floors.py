"""Imports point downward: a module knows the floors below its own, and its own, and no other."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    0: "errors dims cost seeds words catalogue canonical genome expr drawing layout",
    1: "block wrapper kernels layers",
    2: "blocks",
    3: "choices identity sections yaml_source stack_yaml space_yaml space ways locate library "
    "schema edges stack model mup rules fits",
    4: "device processes train memory trial weights testing",
    5: "search",
    6: "export inference scale",
    7: "report cli __main__ __init__",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
TORCH_FREE = [
    "choices",
    "identity",
    "sections",
    "yaml_source",
    "stack_yaml",
    "space_yaml",
    "space",
    "ways",
    "locate",
    "library",
    "schema",
]


def imports(source, package=""):
    """Every module that a source imports, at any depth; what only types need is left out."""
    tree = ast.parse(source)
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def unit(module):
    """The part of archsearch that a module belongs to."""
    return [*module.split("."), "__init__"][1]


def upward(name, source):
    """The imports of a source in unit `name` that point upward."""
    modules = list(imports(source))
    assert not any(module.startswith(".") for module in modules), "imports are absolute"
    return [
        module
        for module in modules
        if module.split(".")[0] == "archsearch" and FLOOR[unit(module)] > FLOOR[name]
    ]


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def unit_of(path):
    return path.relative_to(ROOT / "archsearch").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources("archsearch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    assert unit_of(path) in FLOOR, "a new unit needs a floor"
    assert upward(unit_of(path), path.read_text()) == []


def test_an_upward_import_is_caught():
    assert upward("dims", "from archsearch.model import Model") == ["archsearch.model"]
    assert upward("search", "def f():\n    import archsearch.report.live") == [
        "archsearch.report.live"
    ]


def of_blocks(source):
    """The imports of a source that name a block's file."""
    return [m for m in imports(source) if m.startswith("archsearch.blocks")]


@pytest.mark.parametrize("path", sources("archsearch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_block_is_found_by_entry_point_alone(path):
    """What two blocks share stands in `kernels` or `layers`."""
    assert of_blocks(path.read_text()) == []


def test_a_block_that_imports_another_is_caught():
    source = "from archsearch.blocks.mamba2 import draw_conv"
    assert of_blocks(source) == ["archsearch.blocks.mamba2"]
    assert of_blocks("import archsearch.blocks.gla as gla") == ["archsearch.blocks.gla"]
    assert of_blocks("from archsearch.blocks import gla") == ["archsearch.blocks"]


@pytest.mark.parametrize("path", sources("archsearch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tasks_and_spaces_are_found_by_entry_point_alone(path):
    packages = {module.split(".")[0] for module in imports(path.read_text())}
    assert not packages & {"mad_tasks", "search_spaces"}


@pytest.mark.parametrize("path", sources("mad_tasks"), ids=lambda p: p.name)
def test_the_tasks_stand_alone(path):
    packages = {module.split(".")[0] for module in imports(path.read_text())}
    assert "archsearch" not in packages


OUTSIDE = {
    "fla": 1,
    "mamba_ssm": 1,
    "selective_scan_cuda": 1,
    "torch": 1,
    "triton": 1,
    "networkx": 3,
    "pydantic": 3,
    "pydantic_core": 3,
    "yaml": 3,
    "safetensors": 4,
    "numpy": 5,
    "optuna": 5,
    "optuna_dashboard": 5,
    "scipy": 5,
    "sqlalchemy": 5,
    "datasets": 6,
    "gguf": 6,
    "lm_eval": 6,
    "pyarrow": 6,
    "tokenizers": 6,
    "transformers": 6,
    "xllamacpp": 6,
    "plotly": 7,
    "rich": 7,
    "typer": 7,
}
"""Other people's packages, and the lowest floor that may know them."""


def misplaced(name, source):
    """The imports of a source in unit `name` that its floor may not know."""
    packages = {module.split(".")[0] for module in imports(source)}
    foreign = packages - sys.stdlib_module_names - {"archsearch"}
    if name == "testing":
        foreign -= {"pytest"}
    return sorted(package for package in foreign if OUTSIDE.get(package, 99) > FLOOR[name])


@pytest.mark.parametrize("path", sources("archsearch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_other_peoples_packages_stay_on_their_floors(path):
    assert misplaced(unit_of(path), path.read_text()) == []


OPTIONAL = {"fla", "mamba_ssm", "selective_scan_cuda", "triton"}
"""Packages that are imported where a backend of them was chosen, and nowhere else."""


@pytest.mark.parametrize("path", sources("archsearch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_backends_are_imported_only_where_they_were_chosen(path):
    """By place, from `kernels.dispatch`; so a file that needs such a package is never imported."""
    modules = set(imports(path.read_text()))
    assert not {m for m in modules if m.startswith("archsearch.kernels._")}
    own = path.parent.name == "kernels" and path.name.startswith("_")
    assert own or not {m.split(".")[0] for m in modules} & OPTIONAL


def test_a_package_below_its_floor_is_caught():
    assert misplaced("dims", "import math, torch.nn") == ["torch"]
    assert misplaced("space", "def f():\n    from optuna import trial") == ["optuna"]
    assert misplaced("cli", "import requests") == ["requests"]
    assert misplaced("rules", "import torch, networkx, pytest") == ["pytest"]


def loads(module, seen):
    """Every module that importing one brings along; what waits inside a function is left out."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not path.is_file():
        return seen | {module}
    tree = ast.parse(path.read_text())
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    seen = seen | {module}
    for name in imports(ast.unparse(ast.Module(body, []))):
        seen = loads(name, seen)
    return seen


@pytest.mark.parametrize("name", [*FLOORS[0].split(), *TORCH_FREE])
def test_what_the_checker_needs_brings_no_torch_along(name):
    packages = {module.split(".")[0] for module in loads(f"archsearch.{name}", set())}
    assert not packages & {"torch", "optuna"}


def test_torch_that_comes_along_is_caught():
    assert "torch" in loads("archsearch.rules", set())  # by way of archsearch.model
