"""Which genomes a run's proxy is asked about, what is trained of them, and what that says."""

import itertools
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import RunError, SpaceError
from archsearch.genome import Gene, Genome
from archsearch.mup import Base
from archsearch.scale.agreement import Score
from archsearch.scale.candidates import choose, keep, kept
from archsearch.scale.fidelity import (
    Design,
    enlarged,
    family,
    proxies,
    ranked_losses,
    text_recipe,
    weigh,
)
from archsearch.scale.pretrain import Mark
from archsearch.scale.stability import Stability
from archsearch.scale.trainings import Ended
from archsearch.search.finals import Fresh
from archsearch.sections import Recipe
from archsearch.seeds import seed
from archsearch.space_yaml import parse
from tests.helpers import TINY
from tests.search.helpers import LARGE, LISTED, searched

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
VOCAB = 256
MIXERS = (Gene.of("attention", heads=2), Gene.of("mamba2", d_state=16), Gene.of("short_conv"))
FFNS = (Gene.of("swiglu"), Gene.of("swiglu", mult=1), Gene.of("kan", grid=4))
GENOMES = tuple(
    Genome(16, genes)
    for genes in itertools.islice(itertools.product(MIXERS, FFNS, MIXERS, FFNS), 0, 72, 4)
)
DESIGN = Design(
    genomes=GENOMES, large=enlarged(GENOMES, 64), recipe=text_recipe(Recipe(), 100, 8),
    context=32, seeds=2, vocab=VOCAB,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished run of a space with attention, and without Mamba-2."""
    return searched(tmp_path_factory.mktemp("run"), TINY, "search.trials=10")


def by_origin(chosen, origin):
    return [member.genome for member in chosen.members if member.origin == origin]


def test_a_panel_is_half_of_the_space_and_half_of_the_best_quarter(study):
    chosen = choose(study, 6)
    records = study.records().values()
    best = sorted((r for r in records if r.values), key=lambda r: (-r.score, r.genome.key))
    keys = [record.genome.key for record in best]
    top = [genome.key for genome in by_origin(chosen, "top")]
    assert len(top) == 3
    assert set(top) <= set(keys[: math.ceil(len(keys) / 4)])
    assert len(by_origin(chosen, "uniform")) == 3
    space = study.experiment().space
    assert all(space.locate(genome) for genome in by_origin(chosen, "uniform"))
    assert len({member.genome for member in chosen.members}) == 8
    assert choose(study, 6) == chosen


def test_anchors_are_members_where_the_space_has_them_else_baselines_of_its_size(study):
    space = study.experiment().space
    attention, mamba = by_origin(choose(study, 6), "anchor")
    assert attention.text() == "2x(attention[heads=2] swiglu)"
    assert space.locate(attention)
    assert [gene.block for gene in mamba.genes] == ["mamba2", "swiglu"]
    assert not space.locate(mamba)
    assert mamba.d_model == attention.d_model == 16


def test_a_space_that_cannot_be_listed_has_a_panel_too(tmp_path):
    study = searched(tmp_path, LARGE, "search.trials=8")
    chosen = choose(study, 8)
    assert chosen.size == 8
    assert [gene.block for gene in by_origin(chosen, "anchor")[0].genes][:2] == [
        "attention",
        "swiglu",
    ]


def test_too_few_trials_or_members_are_said_with_what_is_legal(tmp_path):
    study = searched(tmp_path / "few", LISTED, "search.trials=3")
    with pytest.raises(RunError, match=r"3 finished trials, too few .* 4 or more are needed"):
        choose(study, 4)
    study = searched(tmp_path / "all", LISTED)
    with pytest.raises(RunError, match=r"12 members .* panel of 13; legal here: --genomes 3 to 12"):
        choose(study, 13)


def test_a_panel_that_was_kept_comes_back_and_a_damaged_one_is_said(study, tmp_path):
    file = tmp_path / "fidelity/panel.json"
    assert kept(file) is None
    chosen = choose(study, 6)
    keep(file, chosen)
    assert kept(file) == chosen
    whole = file.read_text()
    for broken in (whole[:-9], "{}", json.dumps(json.loads(whole) | {"members": [{}]})):
        file.write_text(broken)
        with pytest.raises(RunError, match=r"panel\.json is damaged .* remove it"):
            kept(file)


def test_targets_are_as_wide_as_asked_or_four_times_their_genomes():
    assert {genome.d_model for genome in DESIGN.large} == {64}
    assert enlarged(GENOMES, None) == DESIGN.large
    with pytest.raises(SpaceError, match=r"cannot be 60 wide.*legal widths: 56, 64"):
        enlarged(GENOMES, 60)
    for training, genome in zip(DESIGN.targets, GENOMES, strict=True):
        assert {one.base for one in training} == {Base(16, len(genome.genes))}
        assert [one.settings.seed for one in training] == [0, 1]


def test_targets_no_wider_than_the_run_have_nothing_smaller_beside_them():
    same = replace(DESIGN, large=enlarged(GENOMES, 16))
    assert same.small == ()
    assert len(same.trainings) == 2 * len(GENOMES)
    assert len(DESIGN.trainings) == 4 * len(GENOMES)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 400])
def test_text_is_trained_to_the_end_of_the_decay_and_read_at_a_quarter(steps):
    recipe = text_recipe(Recipe(schedule="constant", lr=0.01, steps=5), steps, 4)
    assert (recipe.schedule, recipe.lr, recipe.batch) == ("cosine", 0.01, 4)
    assert recipe.stops[-1] == steps
    assert recipe.stops[0] == max(1, round(steps / 4))
    assert text_recipe(Recipe(schedule="wsd", steps=5), None, 4).schedule == "wsd"
    assert text_recipe(Recipe(steps=5), None, 4).steps == 5


def test_a_family_is_the_same_blocks_in_any_order():
    mixer, ffn = MIXERS[0], FFNS[0]
    assert family(Genome(16, (mixer, ffn, ffn))) == family(Genome(16, (ffn, mixer, ffn)))
    assert family(Genome(16, (mixer, ffn))) != family(Genome(16, (mixer, ffn, ffn)))


def ended(loss, *, reasons=(), why="", early=5.0, gradient=1.0):
    marks = (Mark(25, early, early, 1.0), Mark(100, loss, loss, 1.0))
    return Ended(marks, Stability(tuple(reasons)), why, 2.0, gradient)


LOSSES = st.floats(0.5, 9.0)
RUNS = st.lists(
    st.tuples(LOSSES, st.sampled_from(["", "unstable", "broken"])), min_size=2, max_size=2
)


@given(runs=st.lists(RUNS, min_size=3, max_size=8))
def test_nothing_unstable_is_ahead_of_anything_stable(runs):
    targets = [
        [ended(x, reasons=["x"] * (k == "unstable"), why="x" * (k == "broken")) for x, k in of]
        for of in runs
    ]
    losses, unstable = ranked_losses(targets, math.log(VOCAB))
    shaky = {i for i, of in enumerate(runs) if any(kind for _, kind in of)}
    assert set(unstable) == shaky
    means = [sum(of) / 2 for of in losses]
    assert all(math.isfinite(mean) for mean in means)
    steady = [mean for i, mean in enumerate(means) if i not in shaky]
    assert all(
        mean >= max(steady, default=0.0) - 1e-12 for i, mean in enumerate(means) if i in shaky
    )


def measured(worth, noise=0.005, gain=0.3):
    """How everything ended if the loss of genome i at the target were worth[i]."""
    rng, ends = random.Random(0), {}
    for i, (small, large) in enumerate(zip(DESIGN.small, DESIGN.targets, strict=True)):
        for one, other in zip(small, large, strict=True):
            ends[one] = ended(worth[i] + gain + noise * rng.gauss(0, 1))
            ends[other] = ended(worth[i] + noise * rng.gauss(0, 1))
    return ends


def asked(worth, values, ends=None, maximize=False):
    proxy = Score(name="proxy", values=tuple((v,) for v in values), maximize=maximize)
    return weigh(DESIGN, ends or measured(worth), proxy, [], 32, resamples=400)


def test_a_hash_of_the_genome_is_useless_and_the_loss_itself_is_trusted():
    worth = [2 + 0.05 * i for i in range(len(GENOMES))]
    random.Random(1).shuffle(worth)
    hashed = [float(seed(genome.key) % 997) for genome in GENOMES]
    found = asked(worth, hashed)
    assert found.agreement.verdict.kind == "useless"
    assert not found.agreement.verdict.passed
    assert 0 in found.agreement.proxy.tau
    trusted = asked(worth, [-w for w in worth], maximize=True)
    assert trusted.agreement.verdict.passed


def test_baselines_are_costs_and_what_less_training_says():
    found = asked([2 + 0.05 * i for i in range(len(GENOMES))], range(len(GENOMES)))
    names = [standing.name for standing in found.agreement.baselines]
    assert names == [
        "parameters", "FLOPs per token", "state bytes", "first gradient", "loss at 1/4 of it",
        "loss at own width",
    ]  # fmt: skip
    own = found.agreement.baselines[-1]
    assert own.tau.value > 0.9


def test_an_unstable_genome_is_named_and_has_no_slope():
    worth = [2 + 0.05 * i for i in range(len(GENOMES))]
    ends = measured(worth)
    bad = DESIGN.targets[0][1]
    ends[bad] = ended(0.1, reasons=["attention logits reach 60"])
    found = asked(worth, worth, ends)
    key = GENOMES[0].key
    assert list(found.unstable) == [key]
    assert "attention logits reach 60" in found.unstable[key]
    assert key not in found.trends
    assert min(found.panel.target[0]) >= max(max(of) for of in found.panel.target)
    assert found.agreement.proxy.regret[0] > 3


def test_the_slope_is_nats_per_doubling_and_lines_that_cross_are_flagged():
    worth = [2.0 + 0.001 * i for i in range(len(GENOMES))]
    ends = measured(worth, noise=1e-4)
    steep = GENOMES[5].key
    for one in DESIGN.small[5]:
        ends[one] = ended(worth[5] + 2.0)
    found = asked(worth, worth, ends)
    for i, (small, large) in enumerate(zip(DESIGN.small, DESIGN.targets, strict=True)):
        few, many = (DESIGN.plan(of[0]).flops for of in (small, large))
        gain = 2.0 if i == 5 else 0.3
        slope = found.trends[GENOMES[i].key].slope.value
        assert slope == pytest.approx(gain / math.log2(many / few), abs=1e-3)
    assert any(c.behind == steep and c.clear for c in found.crossings)
    assert all(c.ahead != steep for c in found.crossings)


SEVERAL = TINY.replace(
    "seq_len: 16}]", "seq_len: 16}, mad/selective-copying: {seq_len: 16, copy: 4}]"
)


def test_the_proxy_is_the_first_objective_and_each_task_counts_alone_too():
    genomes = GENOMES[:3]
    known = {
        genome.key: {k: Fresh(0.1 * i + k, 2.0, None, "", (0.2 * i, k)) for k in range(2)}
        for i, genome in enumerate(genomes)
    }
    score, *alone = proxies(parse(SEVERAL), genomes, known, 2)
    assert score == Score(name="score", values=((0.0, 1.0), (0.1, 1.1), (0.2, 1.2)), maximize=True)
    assert [one.name for one in alone] == ["in-context-recall", "selective-copying"]
    assert alone[0].values == ((0.0, 0.0), (0.2, 0.2), (0.4, 0.4))
    assert alone[1].values == ((0, 1),) * 3
    (only,) = proxies(parse(TINY), genomes, known, 2)
    assert only == score


def test_an_objective_that_is_not_finite_counts_as_the_worst():
    text = TINY.replace("{maximize: score}", "{minimize: loss / score}")
    genomes = GENOMES[:3]
    known = {genome.key: {0: Fresh(0.5, 1.0 + i, None)} for i, genome in enumerate(genomes)}
    known[genomes[0].key] = {0: Fresh(0.0, 1e3, None, "the loss is nan")}
    (proxy,) = proxies(parse(text), genomes, known, 1)
    assert not proxy.maximize
    assert proxy.values == ((6.0,), (4.0,), (6.0,))
