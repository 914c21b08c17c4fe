"""The pages of the blocks say what the blocks say."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
spec = spec_from_file_location("blocks_pages", DOCS / "blocks.py")
generator = module_from_spec(spec)
spec.loader.exec_module(generator)
NAMES = generator.names()
RERUN = "stale: run `make pages`"


def test_every_block_has_a_page_and_a_drawing_and_nothing_else_is_there():
    wanted = {"README.md"} | {f"{name}.{end}" for name in NAMES for end in ("md", "svg")}
    assert {path.name for path in (DOCS / "blocks").iterdir()} == wanted, RERUN


@pytest.mark.parametrize("name", ["README", *NAMES])
def test_the_page_is_what_would_be_written(name):
    want = generator.index() if name == "README" else generator.page(name)
    assert (DOCS / "blocks" / f"{name}.md").read_text() == want, RERUN


@pytest.mark.parametrize("name", ["README", *NAMES])
def test_links_lead_somewhere_and_tables_have_equal_rows(name):
    text = (DOCS / "blocks" / f"{name}.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        assert link.startswith("https://") or (DOCS / "blocks" / link).exists(), link
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for part in outside.split("\n\n"):
        if part.startswith("| "):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in part.splitlines()}) == 1
