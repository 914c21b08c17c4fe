"""A run goes on in a wider space with every trial it had, and is left alone in any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note, save_note, wsgi

from archsearch.errors import RunError
from archsearch.genome import Gene, Genome
from archsearch.rules import members, settle
from archsearch.search.proposals import Proposals
from archsearch.search.storage import JOURNAL
from archsearch.search.study import Study, indexed
from archsearch.search.widen import carried
from archsearch.space_yaml import dump, parse
from tests.search.helpers import LARGE, LISTED, opened, outcome, worker
from tests.search.widening import WIDER, everything, on, run

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

ROOT = Path(__file__).parents[2]
ONE = LISTED.replace("[{maximize: score}, {minimize: params}]", "[{maximize: score}]")
NARROW = LISTED.replace("mult: [1, 2, 3, 4]", "mult: [1]")
PART, FEW = (LISTED.replace("mult: [1, 2, 3, 4]", m) for m in ("mult: [1, 2]", "mult: [1, 2, 3]"))
FFN = "ffn: {swiglu: {mult: [1, 2, 3, 4], act: [silu, gelu, relu2]}}"
MATCHED = LISTED.replace("  d_model: 16\n", "").replace(
    "objectives", "match: {params: 3K, tolerance: 30%}\nobjectives"
)
RULED = LISTED.replace("objectives", "require: [params <= 2500]\nobjectives")


def contents(folder):
    """Every file of a run directory but its locks, byte for byte."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def interrupted(folder, trials=None, url="", after=0):
    """Stop in the middle of the trial `after`."""

    def stop(event):
        if event["event"] == "step" and event["index"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker(folder, trials, place=url, emit=stop).work()


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (LISTED, "mult: [1, 2, 3, 4]", "mult: [8, 1, 2, 3, 4]"),
        (LISTED, FFN, "ffn: [swiglu: {mult: [1, 2, 3, 4], act: [silu, gelu, relu2]}, kan]"),
        (ONE, "act: [silu, gelu, relu2]", "act: [relu2, silu, gelu, rational]"),
        (LARGE, "{from: 1, to: 4}", "{from: 1, to: 6}"),
        (LARGE, "repeat: 4", "repeat: [4, 6]"),
        (LARGE, "- ffn:", "- mixer: [attention: {heads: 2}, none]\n        - ffn:"),
        (RULED, "params <= 2500", "params <= 3000"),
        (MATCHED, "act: [silu, gelu, relu2]", "act: [silu, gelu, relu2, spline]"),
    ],
    ids=["value", "block", "reordered", "range", "repeats", "slot", "rule", "matched"],
)
def test_a_wider_space_goes_on_with_every_trial(folder, text, old, new):
    assert old in text
    run(folder, text, trials=4)
    before, wide = everything(opened(folder)), text.replace(old, new)
    said = run(folder, wide, trials=4)
    study = opened(folder)
    assert everything(study) == before
    assert len(before) == 4
    assert len(said) == 1
    assert "4 trials carried over" in said[0]
    assert study.name in said[0]
    assert study.optuna.metric_names == [goal.name for goal in parse(wide).goals]
    assert run(folder, wide, trials=7) == []
    study, space = opened(folder), parse(wide).space
    after = everything(study)
    assert sorted(after) == list(range(7))
    assert {index: after[index] for index in before} == before
    assert len({row[1] for row in after.values()}) == 7
    for record in study.records().values():
        assert settle(space, space.replay(record.params), 16) == record.genome


def test_a_trial_that_differs_is_noticed(finished, monkeypatch):
    before, add = everything(opened(finished)), optuna.Study.add_trial

    def spoil(self, trial):
        if trial.number == 2:
            trial.user_attrs["score"] += 1e-9
        add(self, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", spoil)
    run(finished, WIDER, trials=5)
    assert everything(opened(finished)) != before


def test_one_study_cannot_hold_both_spaces(finished):
    """Why trials are carried over at all."""
    study = opened(finished)
    study.optuna.set_user_attr("experiment", study.about | {"space": WIDER})
    with pytest.raises(ValueError, match="does not support dynamic value space"):
        worker(finished, trials=6).work()


def test_all_members_are_found_however_often_the_space_grows(folder, url):
    run(folder, NARROW, url, trials=2)
    before = everything(opened(folder, url))
    assert len(run(folder, PART, url, trials=5)) == 1
    assert len(run(folder, FEW, url, trials=100)) == 1
    study = opened(folder, url)
    assert study.name == "listed (3)"
    experiment = parse(FEW)
    wanted = {c.genome for c in members(experiment.space, experiment.context)}
    found = everything(study)
    assert {row[1] for row in found.values()} == wanted
    assert len(found) == len(wanted) == 9
    assert {index: found[index] for index in before} == before
    first = optuna.load_study(study_name="listed", storage=study.storage)
    assert len(first.trials) == 2
    assert run(folder, FEW, url, trials=100) == []
    assert Study.only(study.storage).name == Study(study.storage, "listed").name == "listed (3)"


def test_the_line_in_the_documentation_is_the_real_one(finished):
    page = (ROOT / "docs" / "space-language.md").read_text()
    assert run(finished, WIDER, trials=5)[0] in page.splitlines()


def test_what_the_study_says_beside_its_trials_is_kept(finished):
    study = opened(finished)
    study.optuna.set_user_attr("finals", {"0": [0.5]})
    save_note(study.optuna, "mine")
    run(finished, WIDER, trials=5)
    later = opened(finished)
    assert later.optuna.user_attrs["finals"] == {"0": [0.5]}
    assert get_note(later.optuna) == "mine"
    assert later.about["lag"] == study.about["lag"]
    assert later.experiment().text == WIDER


@on(["journal", "sqlite"])
def test_the_dashboard_shows_note_and_drawing_of_a_trial_from_before(folder, url):
    run(folder, LISTED, url, trials=2)
    run(folder, WIDER, url, trials=3)
    study = opened(folder, url)
    app = wsgi(study.storage, artifact_store=FileSystemArtifactStore(folder / "artifacts"))

    def get(path, query=""):
        environ, said = {"PATH_INFO": path, "QUERY_STRING": query}, []
        setup_testing_defaults(environ)
        body = b"".join(app(environ, lambda *status: said.append(status[0])))
        assert said == ["200 OK"]
        return body.decode()

    own = study.optuna._study_id
    trials = json.loads(get(f"/api/studies/{own}", "after=0"))["trials"]
    assert len(trials) == 3
    for trial in trials:
        names = [a["filename"] for a in trial["artifacts"]]
        assert sorted(names) == ["curves.csv", "genome.svg", "genome.yaml", "per_task.csv"]
        body = trial["note"]["body"]
        assert attribute(trial, "genome") in body
        link = body.partition("](")[2].partition(")")[0]
        assert link.startswith(f"/artifacts/{own}/{trial['trial_id']}/")
        assert "<svg" in get(link)


def attribute(trial, name):
    return next(attr["value"] for attr in trial["user_attrs"] if attr["key"] == name)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mult: [1, 2,", "mult: [1,", ["of 5 are outside", "e.g. #", "swiglu"]),
        ("d_model: 16", "d_model: 24", ["5 of 5 are outside", "d_model 16"]),
        ("objectives", "require: [params < 1]\nobjectives", ["5 of 5", "breaks the rule"]),
        ("steps: 4", "steps: 5", ["recipe.steps: 4 -> 5", "Only define, model"]),
        ("vocab: 8", "vocab: 10", ["vocab: 8 -> 10", "Only define, model"]),
        ("{minimize: params}", "{minimize: flops}", ["params -> flops", "Only define, model"]),
        ("trials: 12", "trials: 12, seed: 1", ["seed: - -> 1", "Only define, model"]),
    ],
)
def test_any_other_space_is_refused_and_nothing_is_changed(finished, old, new, words):
    before = contents(finished)
    for text in (LISTED.replace(old, new), WIDER.replace(old, new)):
        with pytest.raises(RunError) as caught:
            run(finished, text, trials=5)
        for word in (*words, "Nothing was changed", "--name"):
            assert word in str(caught.value)
        assert contents(finished) == before


def test_a_matched_width_must_stay_the_same(folder):
    run(folder, MATCHED, trials=3)
    with pytest.raises(RunError, match=r"would have d_model \d+, not \d+"):
        run(folder, MATCHED.replace("params: 3K", "params: 5K"), trials=3)
    run(folder, MATCHED.replace("[1, 2, 3, 4]", "[1, 2, 3, 4, 5]"), trials=3)


@on(["journal"])
def test_places_without_a_result_are_filled_in_the_new_space(folder, url):
    """Some were lost, some interrupted, some wait, one is in work elsewhere."""
    run(folder, LISTED, url, trials=12, work=False)
    worker(folder, 3, place=url).work()
    interrupted(folder, url=url, after=3)
    study = opened(folder, url)
    wanted = study.genomes()[3]
    for end in (TrialState.FAIL, None, None):
        trial = study.optuna.ask()
        if end:
            study.optuna.tell(trial, state=end)
    study.optuna.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"index": 4}))
    before = everything(study)
    run(folder, WIDER, url, trials=12)
    study = opened(folder, url)
    after = everything(study)
    assert sorted(after) == list(range(12))
    assert {index: after[index] for index in before} == before
    assert after[3][1] == wanted
    assert len({row[1] for row in after.values()}) == 12
    places = [index for trial, index in indexed(study.trials()) if "index" not in trial.user_attrs]
    assert places == list(range(12))


def test_an_unfinished_trial_outside_the_space_is_proposed_anew(folder):
    run(folder, LISTED, work=False)
    worker(folder, 2).work()
    interrupted(folder, after=2)
    study = opened(folder)
    outside = dict(study.genomes()[2].genes[0].params)["mult"]
    finished = {dict(r.genome.genes[0].params)["mult"] for r in study.records().values()}
    assert outside not in finished
    left = [mult for mult in (1, 2, 3, 4) if mult != outside]
    run(folder, LISTED.replace("[1, 2, 3, 4]", str(left)))
    records = opened(folder).records()
    assert sorted(records) == list(range(9))
    assert outside not in {dict(r.genome.genes[0].params)["mult"] for r in records.values()}


GROWN = LARGE.replace("{from: 1, to: 4}", "{from: 1, to: 5}")


@pytest.mark.parametrize("strategy", ["evolution", "graphgp"])
def test_proposals_are_a_function_of_what_was_carried_over(folder, tmp_path, strategy):
    narrow, wide = (t.replace("trials: 22", f"strategy: {strategy}") for t in (LARGE, GROWN))
    run(folder, narrow, trials=19)
    run(folder, wide, trials=19)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    run(folder, wide, trials=23)
    worker(again, 21).work()
    interrupted(again, 23, after=22)
    worker(again, 23).work()
    study = opened(folder)
    assert outcome(opened(again)) == outcome(study)
    experiment = parse(wide, overrides=("search.trials=23",))
    records = study.records()

    def proposed(given):
        """By workers that know no more than they must."""
        for index in (0, 1, 2, 19, 22):
            known = {i: record for i, record in records.items() if i <= index - 8}
            proposals = Proposals(experiment, 8, given)
            yield index, proposals.propose(index, known, {}).genome

    wanted = {index: records[index].genome for index in (0, 1, 2, 19, 22)}
    assert dict(proposed(carried(study))) == wanted
    assert dict(proposed({})) != wanted


def test_trials_that_wait_at_a_rung_go_on_in_the_new_space(folder):
    text, wide = (t.replace("search: {", "search: {rungs: [2], ") for t in (LISTED, WIDER))
    run(folder, text, trials=12, work=False)
    interrupted(folder, after=13)
    before = everything(opened(folder))
    run(folder, wide, trials=15)
    study = opened(folder)
    after = everything(study)
    assert {index: after[index] for index in before} == before
    records, went_on = study.records(), {}
    for record in records.values():
        if "continues" in record.attrs:
            went_on[record.attrs["continues"]] = record
    for index, record in went_on.items():
        assert records[index].genome == record.genome
        assert record.scores[:1] == records[index].scores
    begun = [r.genome for r in records.values() if "continues" not in r.attrs]
    assert len(begun) == len({*begun}) == 15
    assert any(index in before and record.index not in before for index, record in went_on.items())


def test_a_genome_for_comparison_is_kept_until_the_space_holds_it(folder, tmp_path):
    beside = Genome(16, (Gene.of("swiglu", mult=6, act="silu"),))
    (tmp_path / "beside.yaml").write_text(dump(beside))
    start = f"trials: 12, start_from: [{tmp_path}/beside.yaml]"
    run(folder, LISTED.replace("trials: 12", start), trials=3)
    before = everything(opened(folder))
    assert before[0][1] == beside
    run(folder, WIDER.replace("trials: 12", start), trials=4)
    after = everything(opened(folder))
    assert {index: after[index] for index in before} == before
    assert opened(folder).trials()[0].constraints == {"outside": 1.0}
    run(folder, WIDER.replace("4, 5]", "4, 5, 6]").replace("trials: 12", start), trials=5)
    records = opened(folder).records()
    assert records[0].genome == beside
    assert "outside" not in records[0].attrs
    assert opened(folder).trials()[0].constraints == {}
    assert records[0].params
    assert len({r.genome for r in records.values()}) == 5


def test_a_run_without_trials_takes_any_space(folder):
    run(folder, LISTED, work=False)
    run(folder, LISTED.replace("d_model: 16", "d_model: 24"), trials=2)
    assert {r.genome.d_model for r in opened(folder).records().values()} == {24}
    assert (folder / JOURNAL).exists()
