"""Space files by path and by name."""

import os

import pytest

from archsearch import library
from archsearch.errors import SpaceError
from archsearch.library import MOST_BYTES, read_space, shipped, short_names
from archsearch.space_yaml import load


def complaint(source):
    with pytest.raises(SpaceError) as caught:
        read_space(str(source))
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_space_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, shown = read_space(name)
    assert text == shipped()[name].read_text(encoding="utf-8")
    assert shown == f"{name}.yaml"
    assert load(name).space.name == name.rpartition("/")[2]


@pytest.mark.parametrize("name", ["quickstart", "zamba2"])
def test_a_file_comes_before_a_shipped_space_of_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("mine: \u00e9", encoding="utf-8")
    assert read_space(name) == ("mine: \u00e9", name)


def test_a_space_in_a_folder_has_a_short_name():
    assert read_space("zamba2") == read_space("baselines/zamba2")
    assert set(short_names().values()) == set(shipped())
    assert all(read_space(short) == read_space(name) for short, name in short_names().items())


def test_a_short_name_that_two_could_have_is_nobodys(monkeypatch):
    names = ["a/one", "b/one", "b/two", "three", "c/three"]
    monkeypatch.setattr(library, "shipped", lambda: dict.fromkeys(names))
    called = library.short_names.__wrapped__()
    assert called == {"a/one": "a/one", "b/one": "b/one", "two": "b/two"} | {
        "three": "three", "c/three": "c/three"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gemma-2b", "full/gemma-2b", "baselines/full/gemma-2b"])
def test_any_end_of_a_name_that_is_unique_will_do(name):
    assert read_space(name)[1] == "baselines/full/gemma-2b.yaml"


def test_what_is_not_there(tmp_path):
    assert complaint("quickstrat") == (
        "quickstrat does not exist and is no shipped space; did you mean 'quickstart'? "
        "`archsearch spaces` lists all"
    )
    assert "did you mean 'gemma-2b' or 'gemma'?" in complaint("gemma-2c")
    assert complaint(tmp_path).startswith(f"{tmp_path} is a directory and is no shipped space")


@pytest.mark.parametrize("source", ["", "\0", "x" * 5000, "a/" * 3000, "\ud800"], ids=range(5))
def test_a_name_that_can_be_no_path_is_a_clean_error(source):
    assert complaint(source)


def test_what_is_no_text_or_too_large(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert complaint(path) == f"{path} is not a text file"
    path.write_text(" " * (MOST_BYTES + 1))
    assert complaint(path) == f"{path} is larger than {MOST_BYTES} bytes; is it a space file?"
    path.write_text(" " * MOST_BYTES)
    assert read_space(str(path)) == (" " * MOST_BYTES, str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    assert complaint(path) == f"{path} cannot be read: Permission denied"


def test_a_place_that_cannot_be_read_is_a_clean_error(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert complaint(loop).startswith(f"{loop} ")
