"""What `archsearch blocks` says of every block."""

import re
from importlib.metadata import version

import pytest

from archsearch.block import block_class, usual_config
from archsearch.catalogue import SIZES, block_costs, block_info, block_names
from archsearch.library import short_names
from archsearch.report.lists import COST_COLUMNS, cost_rows, paper_link
from archsearch.words import short
from tests.helpers import archsearch, in_process


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    done = archsearch("blocks", cwd=tmp_path_factory.mktemp("listed"))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", block_names())
def test_every_block_has_one_line_with_kind_paper_params_and_state(name, listed):
    info, cost = block_info(name), block_costs(name)[0]
    state = "-" if info.bidirectional else short(cost.state_bytes)
    want = rf"^{name} +{re.escape(short(cost.params))} +{state} +{info.paper} +\S"
    assert len(re.findall(want, listed, re.MULTILINE)) == 1, want
    headings = {"mixer": "mixers ", "ffn": "FFNs ", "wrapper": "wrappers "}
    above = listed[: re.search(want, listed, re.MULTILINE).start()]
    assert max(headings, key=lambda kind: above.rfind("\n" + headings[kind])) == info.kind


def test_the_list_fits_80_columns_with_a_line_per_block(listed):
    lines = listed.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) <= len(block_names()) + 12


@pytest.mark.parametrize("name", block_names())
def test_costs_are_those_of_the_block(name):
    block = block_class(name)
    for (width, context), cost in zip(SIZES, block_costs(name), strict=True):
        assert cost == block.own_cost(width, usual_config(block, width), context)
        if block.info.kind == "ffn":
            assert cost.state_bytes == 0


def test_defaults_that_do_not_fit_give_way_to_the_nearest_that_do():
    attention = block_class("attention")
    assert usual_config(attention, 256).heads == 4
    assert usual_config(attention, 18).heads == 3
    assert usual_config(attention, 2).heads == 1


@pytest.mark.parametrize("name", block_names())
def test_the_page_of_a_block_has_its_parameters_its_paper_and_two_sizes(name, tmp_path, capsys):
    from rich.console import Console

    from archsearch.report.lists import block_page

    Console(width=120).print(block_page(name))
    page = capsys.readouterr().out
    info = block_info(name)
    assert f"https://arxiv.org/abs/{info.paper}" in page
    assert all(re.search(rf"^{dim}  ", page, re.MULTILINE) for dim in info.dims)
    assert all(column in page for column in COST_COLUMNS)
    assert [row[:2] for row in cost_rows(name)] == [("128", "1K"), ("1024", "32K")]
    for row in cost_rows(name):
        assert re.search(r"^ *" + " +".join(map(re.escape, row)) + " *$", page, re.MULTILINE)


def test_what_is_no_arxiv_number_has_no_link():
    assert paper_link("none") is None


def test_spaces_and_baselines_are_listed_apart_within_80_columns(tmp_path):
    done = archsearch("spaces", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    spaces, baselines, _ = done.stdout.split("\n\n")
    rows, _, full = baselines.partition("baselines/full/ before it: ")
    full, _, _ = full.partition("baselines have")
    named = {row.split()[0]: row for row in rows.splitlines()[1:] if "arXiv" in row}
    wanted = {short: name for short, name in short_names().items() if "baselines/" in name}
    assert {*named, *full.replace(",", " ").split()} == set(wanted)
    assert all("/full/" not in wanted[short] and "arXiv " in named[short] for short in named)
    others = {*short_names().values()} - {*wanted.values()}
    assert all(re.search(rf"^{name} ", spaces, re.MULTILINE) for name in others)


def test_a_baseline_is_checked_by_its_name_and_has_no_tasks(tmp_path):
    done = archsearch("check", "zamba2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 combinations, 1 distinct and feasible" in done.stdout
    assert "no tasks are named, so it cannot be run; e.g. `tasks: {use: [mad/*]}`" in done.stdout


def test_the_version_is_that_of_the_package(tmp_path):
    done = in_process("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{version('archsearch')}\n")
