"""Space files: what they mean, every class of error, and what becomes of damaged files."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from archsearch.catalogue import block_names, found
from archsearch.errors import SpaceError
from archsearch.fits import check_fits
from archsearch.genome import Gene, Genome
from archsearch.library import shipped, short_names
from archsearch.rules import draw
from archsearch.space_yaml import Goal, dump, load, load_genome, parse

from .helpers import archsearch

HERE = Path(__file__).parent
ZAMBA = """\
# yaml-language-server: $schema=./archsearch.schema.json
version: 1
name: zamba-like
notes: "Zamba's wiring"

define:                       # named modules; `shared: true` = one set of weights
  global_attn:
    shared: true
    shared_attention: {heads: [4, 8], lora_rank: [0, 8]}
  mixers: &mixers
    - mamba2: {d_state: [16, 32, 64]}
    - attention: {heads: [2, 4], kv_heads: [none, 1], window: [none, 128]}

model:
  d_model: {from: 32, to: 256, step: 32}
  tie_embeddings: true
  stack:
    - stage: stem
      repeat: [1, 2]
      pattern:
        - mixer: mamba2
    - stage: body
      repeat: {from: 2, to: 4}
      choose: per_repeat
      pattern:
        - mixer: *mixers
          repeat: [2, 3]
          prior: {mamba2: 3}
        - slot: global
          one_of: [use: global_attn, none]
        - ffn: [swiglu: {mult: [2, 4]}, none]

match: {params: 1M, tolerance: 5%}

require:
  - count(attention) >= 1 or layers > 8
  - when: count(shared_attention) > 1
    then: 'state_bytes(4096) <= 256M'

objectives:
  - maximize: score
  - minimize: state_bytes(4096)

tasks:
  use:
    - mad/in-context-recall: {vocab: 16, seq_len: 64}
    - mad/selective-copying

recipe: {steps: 200, lr: 3e-3, warmup: 1/10}

search:
  strategy: auto
  trials: 200
  time: 24h
"""
SHARED = Gene.of("shared_attention", "x", heads=2)
PAIR = (Gene.of("attention", window=8), Gene.of("swiglu"))
GENOME = Genome(32, (SHARED, Gene.of("mamba2", head_dim=8), SHARED, *PAIR, *PAIR), "layer")
BASES = {"zamba": ZAMBA, "genome": dump(GENOME)} | {
    name: space.read_text(encoding="utf-8")
    for name, space in shipped().items()
    if "/" not in name  # "genome" stands for the baselines
}


def shown(message):
    """A message with the lists that grow with every block, task and space left out."""
    blocks = block_names()
    growing = {
        "<blocks, none, use>": sorted([*blocks, "none", "use"]),
        "<blocks, none>": [*blocks, "none"],
        "<blocks>": blocks,
        "<tasks>": sorted(found("tasks")),
        "<spaces>": sorted(short_names()),
    }
    for word, listed in growing.items():
        message = message.replace(", ".join(listed), word)
    return message


def read_cases():
    for case in (HERE / "space_errors.txt").read_text().split("=== ")[1:]:
        name, _, rest = case.partition("\n")
        text, _, message = rest.partition("---\n")
        yield pytest.param(text, message.strip("\n"), id=name.replace(" ", "-"))


CASES = list(read_cases())


def complaint(text, overrides=()):
    with pytest.raises(SpaceError) as caught:
        check_fits(parse(text, "f.yaml", overrides))
    return str(caught.value)


@pytest.mark.parametrize(("text", "message"), CASES)
def test_every_class_of_error_is_said_in_these_words(text, message):
    assert shown(complaint(text)) == message


def test_the_error_cases_are_all_there_and_a_right_file_has_none():
    assert len(CASES) > 50
    assert parse("model:\n  stack:\n    - pattern:\n        - mixer: swiglu\n").space.size == 1


def test_a_file_says_what_it_means():
    experiment = parse(ZAMBA)
    space, recipe = experiment.space, experiment.recipe
    assert [stage.name for stage in space.stages] == ["stem", "body"]
    assert [slot.name for slot in space.stages[1].pattern] == ["mixer", "global", "ffn"]
    assert space.d_model.values == tuple(range(32, 257, 32))
    assert (space.match.quantity.text, space.match.target, space.match.tolerance) == (
        "params", 1_000_000, 0.05)  # fmt: skip
    assert (recipe.steps, recipe.lr, recipe.warmup, recipe.batch) == (200, 0.003, 0.1, 32)
    assert (experiment.search.trials, experiment.search.time) == (200, 86_400)
    assert [(goal.name, goal.maximize) for goal in experiment.goals] == [
        ("score", True), ("state_bytes(4096)", False)]  # fmt: skip
    assert [task.name for task in experiment.tasks] == [
        "mad/in-context-recall", "mad/selective-copying"]  # fmt: skip
    assert (experiment.tasks[0].vocab, experiment.tasks[0].seq_len) == (16, 64)
    assert experiment.context == max(task.length for task in experiment.tasks)
    assert experiment.warnings == ()
    ways = (3 + 2 * 2 * 2) * 2 * 3
    with_shared = sum((ways * 2) ** n - ways**n for n in (2, 3, 4)) * 4
    assert space.size == 2 * (with_shared + sum(ways**n for n in (2, 3, 4)))


SMALL = "model:\n  stack:\n    - pattern:\n        - mixer: swiglu\n"


def test_without_objectives_score_and_parameters_are_optimised():
    goals = parse(SMALL).goals
    assert [(goal.name, goal.maximize) for goal in goals] == [("score", True), ("params", False)]
    assert all(isinstance(goal, Goal) for goal in goals)


def test_a_family_of_tasks():
    tasks = parse(SMALL + "tasks: {use: [mad/*]}").tasks
    assert [task.name for task in tasks] == sorted(n for n in found("tasks") if n[:4] == "mad/")


def test_units_of_task_parameters_are_typed_by_the_task():
    (task,) = parse(SMALL + "tasks: {use: [mad/selective-copying: {seq_len: 1K}]}").tasks
    assert task.seq_len == 1000


WARNINGS = [
    ("mixer: [swiglu]", "f.yaml:4:18: a list with one element is not searched"),
    ("mixer: {swiglu: {mult: [2]}}", "f.yaml:4:34: a list with one element is not searched"),
    ("{mixer: swiglu, repeat: [2]}", "f.yaml:4:35: a list with one element is not searched"),
    ("mixer: swiglu\ndefine:\n  a: [attention, none]",
     "f.yaml:6:3: the definition 'a' is never used"),
]  # fmt: skip


@pytest.mark.parametrize(("slot", "warning"), WARNINGS, ids=map(str, range(len(WARNINGS))))
def test_what_is_legal_and_probably_not_meant_is_a_warning(slot, warning):
    text = f"model:\n  stack:\n    - pattern:\n        - {slot}\n"
    assert parse(text, "f.yaml").warnings == (warning,)


def test_definitions_that_are_used_are_not_warned_of():
    text = "define:\n  a: &a [swiglu, none]\n  b: [attention, none]\n  c: [use: b, mamba2]\n"
    text += "model:\n  stack:\n    - pattern:\n        - mixer: {use: c}\n        - ffn: *a\n"
    assert parse(text).warnings == ()


def test_a_definition_is_a_macro_and_a_shared_one_is_not():
    text = "define:\n  a: {%sswiglu: {mult: [1, 2]}}\n" + SMALL.replace(
        "mixer: swiglu", "{mixer: {use: a}, repeat: 2}").replace("stack:\n    - ", "stack:\n    - "
        "choose: per_repeat\n      repeat: 2\n      ")  # fmt: skip
    macro, shared = parse(text % "").space, parse(text % "shared: true, ").space
    assert (macro.size, shared.size) == (4, 2)
    assert all(gene.share is None for d in macro.every() for gene in macro.replay(d).genes)
    assert all(gene.share == "A" for d in shared.every() for gene in shared.replay(d).genes)


def test_equal_labels_are_told_apart():
    text = "define:\n  a: [swiglu: {mult: 3}, swiglu: {mult: 4}]\n" + SMALL.replace(
        "mixer: swiglu", "mixer: [swiglu, use: a, {swiglu: {mult: 5}}]")  # fmt: skip
    (slot,) = parse(text).space.stages[0].pattern
    assert [option.label for option in slot.options] == [
        "swiglu", "swiglu#2", "swiglu#3", "swiglu#4"]  # fmt: skip
    genomes = {parse(text).space.replay(d).text() for d in parse(text).space.every()}
    assert genomes == {"swiglu", "swiglu[mult=3]", "swiglu[mult=4]", "swiglu[mult=5]"}


def test_slots_of_one_name_are_numbered():
    slots = "".join(f"        - {name}: swiglu\n" for name in ("m3", "m", "m", "m", "m2"))
    (stage,) = parse(f"model:\n  stack:\n    - pattern:\n{slots}").space.stages
    names = [slot.name for slot in stage.pattern]
    assert names[:3] == ["m3", "m", "m2"]
    assert len(set(names)) == 5


def test_definitions_that_double_at_every_level_are_read_in_no_time():
    levels = "".join(f"  d{i}: [use: d{i + 1}, use: d{i + 1}]\n" for i in range(40))
    message = complaint(f"define:\n{levels}  d40: swiglu\n" + SMALL)
    assert "'swiglu' stands twice in the choice" in message


# Where errors come from


def test_an_error_in_an_override_is_shown_in_the_override():
    message = complaint(SMALL, ("recipe.stepps=3", "search.strategy=[tpe]", "model.d_model=7"))
    assert message.splitlines() == [
        "--set model.d_model:1:1: 7 is not legal here",
        "    7",
        "    ^",
        "  legal: 8 to 65536",
        "--set recipe.stepps:1:1: unknown key 'stepps'",
        "    3",
        "    ^",
        "  did you mean 'steps'? known: batch, betas, clip, eval_rows, evals, lr, schedule, seeds, "
        "solved, steps, warmup, weight_decay, z_loss",
        "--set search.strategy:1:1: unknown strategy 'a list'",
        "    [tpe]",
        "    ^",
        "  known: auto, evolution, graphgp, local, nsga2, random, tpe",
    ]


def test_errors_are_counted_beyond_twenty():
    text = "model:\n  stack:\n    - pattern:\n" + "        - m: nope\n" * 25
    message = complaint(text)
    assert message.count("unknown block 'nope'") == 20
    assert message.endswith("... and 5 more")


def test_a_genome_file_is_a_seed_and_its_own_seeds_are_not_followed(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(BASES["genome"] + f"search: {{start_from: [{path}, {path}]}}\n")
    (seed,) = parse(SMALL + f"search: {{start_from: [{path}]}}").seeds
    assert seed == load_genome(str(path)) == parse(BASES["genome"]).space.replay({})


def test_a_seed_that_is_no_genome(tmp_path):
    path = tmp_path / "seed.yaml"
    path.write_text(SMALL.replace("swiglu", "[swiglu, none]"))
    assert f"{path} holds 2 architectures, not one" in complaint(
        SMALL + f"search: {{start_from: [{path}]}}")  # fmt: skip
    path.write_text("model: 3")
    message = complaint(SMALL + f"search: {{start_from: [{path}]}}")
    assert f"{path}:1:8: expected a mapping, not 3" in message
    assert "see `archsearch check` for that file" in message


def test_what_may_change_while_a_run_goes_on():
    def identity(more="", overrides=()):
        return parse(SMALL + more, "f", overrides).identity

    assert identity("notes: x\nname: y\nsearch: {trials: 7, time: 1h}\n") == identity()
    assert identity("search: {seed: 1}\n") != identity()
    assert identity("recipe: {steps: 7}\n") != identity()
    assert identity("recipe: {steps: 7}\n") == identity("", ("recipe.steps=7",))


# On the command line


def test_the_command_line_says_it_and_ends_with_2(tmp_path):
    (tmp_path / "f.yaml").write_text(SMALL.replace("swiglu", "swiglo"))
    done = archsearch("check", "f.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert shown(done.stderr) == (
        "f.yaml:4:18: unknown block 'swiglo'\n    - mixer: swiglo\n             ^^^^^^\n"
        "  did you mean 'swiglu'? known: <blocks, none, use>\n"
    )
    fine = archsearch("check", "f.yaml", "--set", "model.stack.0.pattern.0.mixer=swiglu",
                      cwd=tmp_path)  # fmt: skip
    assert (fine.returncode, fine.stderr) == (0, "")


def test_a_match_that_nobody_reaches_says_what_is_in_reach(tmp_path):
    text = SMALL.replace("swiglu", "[swiglu, attention]") + "match: {params: 100G}\n"
    (tmp_path / "f.yaml").write_text(text)
    done = archsearch("check", "f.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "100.0%  match params" in done.stderr
    assert "within reach: params 272 to 4.027e+08; match wants 1e+11" in done.stderr


def test_a_rule_that_nobody_meets_is_named_with_its_share(tmp_path):
    rules = "require: [layers >= 1, layers > 1 or params < 10]\n"
    (tmp_path / "f.yaml").write_text(SMALL.replace("swiglu", "[swiglu, attention]") + rules)
    done = archsearch("check", "f.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "100.0%  layers > 1 or params < 10" in done.stderr
    assert "layers >= 1\n" not in done.stderr


NO_TORCH = """
import sys
from archsearch.cli import main
sys.argv = ["archsearch", *{args!r}]
try:
    main()
except SystemExit as end:
    print("ended", end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize("args", [["--help"], ["check", "f.yaml"], ["run", "f.yaml"]], ids=str)
def test_help_and_errors_come_without_torch(tmp_path, args):
    (tmp_path / "f.yaml").write_text(complete_and_wrong())
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(args=args)],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    code = 0 if args == ["--help"] else 2
    assert done.stdout.splitlines()[-1] == f"ended {code} False"


def complete_and_wrong():
    """A file that touches blocks, tasks, rules and seeds, and is wrong in its last line."""
    return ZAMBA.replace("trials: 200", "trials: 200\n  start_from: [nothing]\n  seed: -1")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_space_is_right_and_has_members(name):
    experiment = load(name)
    assert (*experiment.warnings, *check_fits(experiment)) == ()
    assert bool(experiment.tasks) == (experiment.space.size > 1) == ("/" not in name)
    assert yaml.safe_load(experiment.text)["name"] == experiment.space.name
    rng = random.Random(0)
    for _ in range(3):
        assert draw(experiment.space, rng, experiment.context, lambda genome: True)
