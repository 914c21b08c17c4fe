"""What a person sees of the finals, and of a control by random search."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from archsearch.report.finals import control_lines, finals_lines
from archsearch.search.fresh import missing, recall
from archsearch.search.proposals import Proposals
from archsearch.search.storage import open_storage
from archsearch.search.study import Study
from archsearch.space_yaml import parse
from tests.helpers import TINY, archsearch
from tests.search.helpers import LARGE, LISTED
from tests.search.test_finals import GENOMES, ONE_GOAL, held, scored

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
ANSWERED = r"\[finals \d/6\] #\d+ .*, fresh seed \d: score [01]\.\d{3} \("


def opened(run):
    return Study(open_storage(run), run.name)


def shown(lines):
    console = Console(width=80, file=io.StringIO())
    for line in lines:
        console.print(line)
    return console.file.getvalue()


def told(study):
    return shown(finals_lines(study, study.experiment()))


def test_a_run_ends_with_its_finals_line_by_line_and_as_a_table(finished):
    out = (finished / "out.txt").read_text()
    assert "finals: 3 candidates on 2 fresh seeds" in out
    assert len(re.findall(ANSWERED, out)) == 6
    finals = opened(finished / "runs/tiny").finals()
    table = out[out.index("finals on 2 fresh seeds") :]
    for finalist in finals.ranked:
        mean, half = finalist.score
        row = rf"{finalist.record.index}  .* {finalist.record.score:.3f}  {mean:.3f} +{half:.3f}"
        assert re.search(row, table)
    assert re.search(rf"^> +{finals.winner.record.index} ", table, re.MULTILINE)
    assert f"best  #{finals.winner.record.index} " in out
    again = archsearch("show", "runs/tiny", cwd=finished).stdout
    assert table == again[again.index("finals on 2 fresh seeds") :]


def test_every_finalist_has_weights_and_needs_no_training_to_be_explained(finished, tmp_path):
    study = opened(finished / "runs/tiny")
    finalists = study.finals().ranked
    assert len(finalists) == 3
    for finalist in finalists:
        key = finalist.record.genome.key
        assert (finished / "runs/tiny/weights" / key / "tasks.json").is_file()
        assert missing([finalist.record.genome], 2, recall(tmp_path, study)) == []


def test_ties_are_named_and_a_clear_winner_too():
    noisy = held(scored([0.8, 0.8]), {0: [0.7, 0.5, 0.9], 1: [0.9, 0.7, 0.53]})
    said = told(noisy)
    assert "#0 and #1 cannot be told apart on 3 fresh seeds; #0 is the cheapest by params" in (
        said.replace("\n", " ")
    )
    assert re.search(r"^> 0 .* 0.700  +0.497 +-$", said, re.MULTILINE)
    assert re.search(r"^= 1 ", said, re.MULTILINE)
    single = held(scored([0.8, 0.8], ONE_GOAL), {0: [0.7, 0.5, 0.9], 1: [0.9, 0.7, 0.53]})
    assert "#1 has the best mean" in told(single)
    clear = held(scored([0.8, 0.8]), {0: [0.7, 0.5, 0.9], 1: [0.71, 0.51, 0.91]})
    assert "#1 is clearly the best of 2 finalists" in told(clear)
    assert re.search(r"^  0 ", told(clear), re.MULTILINE)


def test_a_study_from_before_the_finals_says_nothing_of_them():
    study = scored([0.8, 0.7])
    assert finals_lines(study, study.experiment()) == []
    assert control_lines(study) == []


def start(*args, cwd):
    command = [sys.executable, "-m", "archsearch", "run", *args]
    env = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=env, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_finals_that_were_stopped_go_on_with_those_that_are_left(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 8", "steps: 100"))
    args = ("tiny.yaml", "--workers", "1", "--trials", "3")
    run = start(*args, cwd=tmp_path)
    for line in run.stdout:
        if line.startswith("[finals 2/6]"):
            os.killpg(run.pid, signal.SIGINT)
            break
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 130, said
    assert "The same command continues" in said
    assert "Traceback" not in said
    study = opened(tmp_path / "runs/tiny")
    assert study.finals() is None
    before = study.fresh
    kept = sum(map(len, before.values()))
    assert 2 <= kept < 6
    assert "the finals are not over" in told(study)
    rest = start(*args, cwd=tmp_path).communicate(timeout=300)[0]
    assert len(re.findall(r"^\[finals ", rest, re.MULTILINE)) == 6 - kept
    study = opened(tmp_path / "runs/tiny")
    assert study.finals() is not None
    for key, trainings in before.items():
        assert trainings.items() <= study.fresh[key].items()


def controlled(study, theirs, mine, genome=GENOMES[5], trials=None):
    """A study whose winner met that of a random search."""
    study.optuna.set_user_attr("control", {
        "trials": len(study.records()) if trials is None else trials, "index": 7,
        "winner": study.best().genome.key, "genome": genome.to_json(),
        "fresh": [[score, 1.0, None, ""] for score in theirs],
        "against": [[score, 1.0, None, ""] for score in mine],
    })  # fmt: skip
    return " ".join(shown(control_lines(study)).split())


def test_the_verdict_on_random_search_is_what_the_paired_interval_says():
    study = scored([0.8, 0.7])
    steady, ahead = [0.5, 0.6, 0.7], [0.60, 0.71, 0.80]
    said = controlled(study, steady, ahead)
    assert "random search with the same 2 trials: best #7" in said
    assert "score 0.600 +- 0.248 on 3 fresh seeds; the search is ahead by 0.103 +- 0.014" in said
    assert "params 13.9 k against 400" in said
    assert "random search is ahead by 0.103 +- 0.014" in controlled(study, ahead, steady)
    assert "not distinguishable from the search (+0.000 +- 0.497)" in (
        controlled(study, steady, steady[::-1])
    )
    assert "finds the same winner" in controlled(study, ahead, ahead, study.best().genome)
    assert controlled(study, steady, ahead, trials=3) == ""


def test_what_is_random_anyway_needs_no_control(finished, tmp_path):
    for text, overrides, by_chance in [
        (LISTED, (), True),
        (LARGE, (), False),
        (LARGE, ("search.trials=18",), True),
        (LARGE, ("search.strategy=random",), True),
    ]:
        assert Proposals(parse(text, overrides=overrides), 8).by_chance == by_chance
    shutil.copytree(finished, tmp_path / "here")
    args = ("run", "tiny.yaml", "--workers", "1", "--control", "random")
    again = archsearch(*args, cwd=tmp_path / "here")
    assert "no control: the search itself was random: 6 random members" in again.stdout
    assert not (tmp_path / "here/runs/tiny/control").exists()
    wrong = archsearch(*args[:-1], "grid", cwd=tmp_path / "here")
    assert wrong.returncode == 2
    assert "random" in wrong.stderr


@pytest.mark.slow
def test_a_control_is_a_random_search_of_the_same_size_and_is_judged(tmp_path):
    (tmp_path / "large.yaml").write_text(LARGE)
    few = ("--set", "search.finalists=2", "--set", "search.final_seeds=2")
    args = ("run", "large.yaml", "--workers", "1", "--control", "random", *few)
    done = archsearch(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/large"
    study, control = opened(run), Study(open_storage(run / "control"), "large")
    chance = parse(LARGE, overrides=("search.strategy=random",))
    drawn = Proposals(chance, 8)
    genomes = [drawn.propose(i, {}, {}).genome for i in range(22)]
    assert [control.records()[i].genome for i in range(22)] == genomes
    assert [study.records()[i].genome for i in range(22)] != genomes
    assert control.finals() is not None
    verdict = shown(control_lines(study))
    assert "random search with the same 22 trials" in verdict
    assert verdict in done.stdout
    again = archsearch(*args, cwd=tmp_path)
    assert not re.search(r"^\[", again.stdout, re.MULTILINE)
    assert verdict in again.stdout
