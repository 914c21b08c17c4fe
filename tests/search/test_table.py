"""A table keeps what was trained and gives back what a search would have seen."""

import gzip
import json
from dataclasses import replace

import pytest

from archsearch.errors import RunError
from archsearch.expr import SCORES
from archsearch.rules import measure, members
from archsearch.search.table import DIGITS, Curve, Row, Table
from archsearch.space_yaml import parse
from archsearch.trial import WORST_LOSS, run_trial
from tests.search.helpers import LISTED

ROUNDED = 10.0**-DIGITS


def listed(*overrides):
    return parse(LISTED, overrides=("recipe.seeds=2", *overrides))


EXPERIMENT = listed()
GENOMES = [c.genome for c in members(EXPERIMENT.space, EXPERIMENT.context)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The bytes of a table of three members."""
    path = tmp_path_factory.mktemp("table") / "table.jsonl"
    table = Table(EXPERIMENT, path)
    for genome in GENOMES[:3]:
        table.get(genome)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, filled):
    path = tmp_path / "table.jsonl"
    path.write_bytes(filled)
    return path


@pytest.fixture
def nothing_trains(monkeypatch):
    def refuse(*args):
        raise AssertionError("trained")

    monkeypatch.setattr("archsearch.search.table.run_trial", refuse)


def complaint(path, experiment=EXPERIMENT):
    """What a table that cannot be read says; it stays as it is."""
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        Table(experiment, path)
    assert path.read_bytes() == before
    return str(caught.value)


def test_what_was_written_is_read_again(path, tmp_path):
    rows = Table(EXPERIMENT, path).rows
    assert list(rows) == [genome.key for genome in GENOMES[:3]]
    again = Table(EXPERIMENT, tmp_path / "again.jsonl")
    for row in rows.values():
        again.add(row)
    assert Table(EXPERIMENT, again.path).rows == rows
    assert again.path.read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("nothing_trains")
def test_a_member_is_trained_once(path):
    before = path.read_bytes()
    table = Table(EXPERIMENT, path)
    assert table.get(GENOMES[1]).genome == GENOMES[1]
    assert path.read_bytes() == before
    with pytest.raises(AssertionError, match="trained"):
        table.get(GENOMES[3])


def test_a_table_is_complete_once_it_holds_every_member(path):
    table = Table(EXPERIMENT, path)
    assert not table.complete
    for genome in GENOMES:
        table.get(genome)
    assert table.complete
    assert Table(EXPERIMENT, path).complete


@pytest.mark.parametrize("replicate", [0, 1])
def test_an_observation_is_what_a_trial_tells(path, replicate):
    genome = GENOMES[2]
    seen = Table(EXPERIMENT, path).get(genome).observed(EXPERIMENT, replicate)
    recipe, tasks = EXPERIMENT.recipe, EXPERIMENT.tasks
    result = run_trial(genome, tasks, recipe, EXPERIMENT.search.seed)
    if replicate == 0:  # a search whose recipe has one seed
        result = run_trial(genome, tasks, recipe.model_copy(update={"seeds": 1}), 0)
    else:
        runs = tuple(run for run in result.runs if run.seed == replicate)
        points = zip(*(run.curve for run in runs), strict=True)
        scores = tuple(sum(p.accuracy for p in some) / len(some) for some in points)
        result = replace(result, runs=runs, scores=scores)
    assert seen.score == pytest.approx(result.score, abs=ROUNDED)
    assert seen.loss == pytest.approx(result.loss, abs=ROUNDED)
    assert seen.scores == pytest.approx(result.scores, abs=ROUNDED)
    known = dict(zip(SCORES, (result.score, result.loss), strict=True))
    values = [measure(g.expr, genome, EXPERIMENT.context, known) for g in EXPERIMENT.goals]
    assert seen.values == pytest.approx(values, abs=ROUNDED)


def test_the_true_value_is_the_mean_over_replicates(path):
    for row in Table(EXPERIMENT, path).rows.values():
        each = [row.observed(EXPERIMENT, k).values for k in (0, 1)]
        mean = [sum(pair) / 2 for pair in zip(*each, strict=True)]
        assert row.true(EXPERIMENT) == pytest.approx(mean)


def row(status, *curves):
    tasks = {"mad/in-context-recall": tuple(Curve(tuple(c), (1.0,) * len(c)) for c in curves)}
    return Row(genome=GENOMES[0], status=status, why="", curves=tasks)


def test_a_task_that_was_solved_early_keeps_its_score():
    two = Row(genome=GENOMES[0], status="ok", why="", curves={
        "a": (Curve((0.5, 1.0), (1.0, 0.5)),), "b": (Curve((0.1, 0.2, 0.4), (3.0, 2.0, 1.5)),),
    })  # fmt: skip
    seen = two.observed(EXPERIMENT, 0)
    assert seen.scores == pytest.approx((0.3, 0.6, 0.7))
    assert (seen.score, seen.loss) == pytest.approx((0.7, 1.0))


def test_a_diverged_member_has_the_worst_score_and_a_failed_one_none():
    seen = row("diverged", (0.5,), ()).observed(EXPERIMENT, 0)
    assert (seen.score, seen.loss, seen.values[0]) == (0.0, WORST_LOSS, 0.0)
    assert row("diverged", (0.5,), ()).true(EXPERIMENT)[0] == 0.0
    assert row("invalid").true(EXPERIMENT) == ()


def test_other_objectives_are_computed_from_the_same_rows(path):
    other = listed("objectives=[{minimize: loss}]")
    (value,) = Table(other, path).get(GENOMES[0]).true(other)
    assert value > 0


def test_a_torn_last_line_is_dropped_and_its_member_trained_again(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    table = Table(EXPERIMENT, path)
    assert list(table.rows) == [genome.key for genome in GENOMES[:2]]
    table.get(GENOMES[2])
    assert path.read_bytes() == whole


def test_two_processes_may_fill_one_table(path, tmp_path):
    rows = list(Table(EXPERIMENT, path).rows.values())
    one, other = (Table(EXPERIMENT, tmp_path / "new.jsonl") for _ in range(2))
    for trained, table in zip(rows, (one, other, one), strict=True):
        table.add(trained)
    assert one.path.read_bytes() == path.read_bytes()


def test_an_empty_file_is_a_table_to_fill(tmp_path, path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for old in Table(EXPERIMENT, path).rows.values():
        Table(EXPERIMENT, empty).add(old)
    assert empty.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "line", [b"{", b'{"genome": 3}', b"[]", b"", b'{"genome": {"format": 99}}']
)
def test_damage_in_the_middle_is_named(path, line):
    lines = path.read_bytes().split(b"\n")
    lines[2] = line
    path.write_bytes(b"\n".join(lines))
    text = complaint(path)
    assert "is damaged; line 3" in text
    assert "Nothing was changed" in text


def test_a_table_of_another_format_is_refused(path):
    head, _, rows = path.read_text().partition("\n")
    other = json.loads(head) | {"format": 7, "versions": {"archsearch": "9.9"}}
    path.write_text(json.dumps(other) + "\n" + rows)
    text = complaint(path)
    assert "has format 7, made by archsearch 9.9" in text
    assert "reads format 1" in text


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("recipe.steps=8", "recipe.steps: 4 -> 8"),
        ("search.seed=3", "search.seed: 0 -> 3"),
        ("model.d_model=24", "model.d_model: 16 -> 24"),
    ],
)
def test_a_table_of_another_experiment_is_refused(path, override, difference):
    text = complaint(path, listed(override))
    assert difference in text
    assert text.count("->") == 2  # the legend, and this difference alone


@pytest.mark.parametrize("text", ["notes\n", "notes", "{}\n", "[]\n", '{"kind": "report"}\n'])
def test_another_file_is_left_alone(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    assert "is no table of archsearch" in complaint(path)


def test_a_compressed_table_is_only_read(path, filled):
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(filled))
    table = Table(EXPERIMENT, packed)
    assert table.rows == Table(EXPERIMENT, path).rows
    with pytest.raises(RunError, match="gunzip"):
        table.get(GENOMES[5])
    packed.write_bytes(gzip.compress(filled)[:-30])
    assert "cannot be unpacked" in complaint(packed)


def test_a_table_beside_its_space_is_found(path, tmp_path, filled):
    space, elsewhere = tmp_path / "listed.yaml", tmp_path / "elsewhere.jsonl"
    space.write_text(LISTED)
    assert Table.of(EXPERIMENT, str(space), elsewhere).path == elsewhere
    space.with_suffix(".jsonl.gz").write_bytes(gzip.compress(filled))
    assert len(Table.of(EXPERIMENT, str(space), elsewhere).rows) == 3
    assert Table.of(EXPERIMENT, "quickstart", elsewhere).path == elsewhere


def test_a_place_that_cannot_be_written_is_named(tmp_path, path):
    (tmp_path / "file").touch()
    table = Table(EXPERIMENT, tmp_path / "file" / "table.jsonl")
    with pytest.raises(RunError, match=r"table\.jsonl cannot be written"):
        table.add(Table(EXPERIMENT, path).get(GENOMES[0]))
