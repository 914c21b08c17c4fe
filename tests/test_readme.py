"""What the documentation shows is what the program does."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from archsearch.expr import QUANTITIES, SCORES
from archsearch.library import shipped
from archsearch.sections import Recipe, SearchSection, SpaceFile
from tests.helpers import archsearch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LANGUAGE = (ROOT / "docs" / "space-language.md").read_text()


def blocks(kind):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for language, text in fences if language == kind]


def test_the_space_in_the_readme_is_the_quickstart():
    shown = yaml.safe_load(blocks("yaml")[0])
    real = yaml.safe_load(shipped()["quickstart"].read_text())
    for slot in real["model"]["stack"][0]["pattern"]:
        slot.pop("prior", None)
    assert shown == {key: real[key] for key in shown}


def test_the_error_in_the_readme_is_the_real_one(tmp_path):
    shown = next(b for b in blocks("") if "unknown block" in b)
    line, column = map(int, re.match(r"space.yaml:(\d+):(\d+)", shown).groups())
    source = shown.splitlines()[1].strip()
    indent = " " * (column - 1 - source.index("mamba3"))
    before = "model:\n  stack:\n    - repeat: 1\n" + " " * 6 + "pattern:\n"
    text = "# filler\n" * (line - 1 - before.count("\n")) + before + indent + source + "\n"
    (tmp_path / "space.yaml").write_text(text)
    done = archsearch("check", "space.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == shown.strip()


def test_every_command_in_the_readme_exists(tmp_path):
    known = archsearch("--help", cwd=tmp_path).stdout
    shown = re.findall(r"archsearch ([a-z-]+(?: \| [a-z-]+)*)", "\n".join(blocks("")))
    for command in {word for group in shown for word in group.split(" | ")}:
        assert re.search(rf"^  {command} ", known, re.MULTILINE), command


def test_every_make_target_in_the_documents_exists():
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / ".ci/run").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)\b", text)) - {"and"}:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, target


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_every_link_to_a_file_leads_somewhere(path):
    assert (ROOT / path).exists()


def test_the_language_page_names_every_section_field_and_quantity():
    words = set(re.findall(r"`([a-z_]+)", LANGUAGE))
    fields = {*SpaceFile.model_fields, *Recipe.model_fields, *SearchSection.model_fields}
    assert fields - words == set()
    assert {*QUANTITIES, *SCORES} - words == set()
