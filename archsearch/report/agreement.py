"""What a panel says of a proxy: one table, one picture, and the verdict in words."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from archsearch.report.scatter import Dot, draw_scatter
from archsearch.scale.fidelity import REACH
from archsearch.scale.verdict import least_tau
from archsearch.search.fresh import write
from archsearch.search.study import versions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from rich.console import Console

    from archsearch.scale.agreement import Agreement, Standing
    from archsearch.scale.candidates import Chosen
    from archsearch.scale.estimate import Estimate
    from archsearch.scale.fidelity import Design, Fidelity

JSON, SVG = "fidelity.json", "fidelity.svg"
BEST = 5
"""Genomes that are listed."""
LEGEND = (
    "> ranks worse than the proxy, < better, = not told apart from it. Intervals: 95 %. pairs: "
    "share in the right order of those that the target tells apart. partial: rho with log "
    "parameters controlled for. same, other: tau among genomes of the same blocks, and of other "
    "ones. regret: nats lost by the first pick, and by the best of the first three. gain: nats per "
    "doubling of the FLOPs, from the width of the run."
)


def print_report(
    found: Fidelity,
    chosen: Chosen,
    design: Design,
    varying: Collection[tuple[str, str]],
    console: Console,
) -> None:
    """Print the comparison.

    Args:
        found: What it says.
        chosen: The panel.
        design: What was trained.
        varying: Parameters of blocks that are shown.
        console: Where.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    names = {m.genome.key: m.genome.text(varying) for m in chosen.members}
    console.print()
    console.print(_standings(found.agreement))
    say(LEGEND)
    say("")
    console.print(_best(found, names, design))
    for line in _notes(found, names):
        say(line)
    say("")
    console.print(
        Text.assemble((found.panel.proxy.name, "bold"), f": {found.agreement.verdict.text}")
    )
    for standing in found.agreement.baselines:
        if _mark(standing) == "<":
            say(f"{standing.name} ranks better: tau {standing.tau:.2f}, p {standing.p:.2g}")


def _standings(agreement: Agreement) -> Table:
    """The proxy, then what could stand in for it; an interval stands below its value."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("  ranked by", no_wrap=True)
    headers = ("tau-b", "p", "pairs", "rho\npartial", "same\nother", "regret\nof 1, of 3")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for standing in (agreement.proxy, *agreement.baselines):
        of = standing.correlations
        table.add_row(
            f"{_mark(standing)} {standing.name}\n",
            f"{_two(of.tau.value)}\n{_two(of.tau.low)}..{_two(of.tau.high)}",
            f"{standing.p:.2g}",
            _percent(standing.accuracy),
            f"{_two(of.spearman.value)}\n{_two(of.partial.value)}",
            "\n".join("-" if e is None else _two(e.value) for e in (of.within, of.across)),
            "\n".join(f"{nats:.3f}" for nats in standing.regret),
            style="bold" if standing is agreement.proxy else "",
        )
    regret = "\n".join(f"{nats:.3f}" for nats in agreement.random_regret)
    table.add_row("  a random pick", "", "", "", "", "", regret)
    return table


def _mark(standing: Standing) -> str:
    if standing.lead is None:
        return " "
    if standing.lead.low > 0:
        return ">"
    return "<" if standing.lead.high < 0 else "="


def _two(value: float) -> str:
    """Two decimals, and no minus where none of them is left."""
    return f"{round(value, 2) + 0.0:.2f}"


def _percent(share: Estimate | None) -> str:
    if share is None:
        return "-"
    return f"{share.value:.0%}\n{100 * share.low:.0f}..{100 * share.high:.0f}"


def _best(found: Fidelity, names: dict[str, str], design: Design) -> Table:
    """The genomes with the least loss, and how fast they gain."""
    panel = found.panel
    widths = sorted({genome.d_model for genome in design.large})
    where = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in (f"loss at {where}", "s.e.", "gain", "+- 95%", panel.proxy.name):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"the best {BEST}", overflow="fold")
    ranked = sorted(range(len(panel.names)), key=lambda i: statistics.mean(panel.target[i]))
    for i in ranked[:BEST]:
        key, (loss, error) = panel.names[i], _mean(panel.target[i])
        trend = found.trends.get(key)
        gains = ("-", "-")
        if trend is not None:
            slope = trend.slope
            gains = f"{slope.value:.3f}", f"{slope.high - slope.value:.3f}"
        score = f"{statistics.mean(panel.proxy.values[i]):.3f}"
        ended = ("unstable", "") if key in found.unstable else (f"{loss:.3f}", f"{error:.3f}")
        table.add_row(*ended, *gains, score, Text(names[key]))
    return table


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; 0 where one value is all there is."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), error


def _notes(found: Fidelity, names: dict[str, str]) -> list[str]:
    """What limits the comparison, and what it says beyond the table."""
    agreement, seeds = found.agreement, len(found.panel.target[0])
    ceiling = f"noise ceiling: halves of the target's {seeds} seeds agree to tau "
    ceiling += f"{agreement.ceiling:.2f}"
    if agreement.proxy_ceiling is not None:
        ceiling += f", of the proxy's to {agreement.proxy_ceiling:.2f}"
    if agreement.share is not None and agreement.share > 0:
        ceiling += f"; tau is {agreement.share:.0%} of the target's"
    notes = [
        ceiling,
        f"noise of a seed {agreement.noise:.3f} nats; {agreement.resolvable} of {agreement.pairs} "
        f"pairs are told apart; {agreement.pairs_within} pairs are of the same blocks",
        f"{agreement.genomes} genomes tell a tau of {least_tau(agreement.genomes):.2f} or more "
        "from 0",
    ]
    if found.trends:
        clear = [crossing for crossing in found.crossings if crossing.clear]
        pairs = len(found.trends) * (len(found.trends) - 1) // 2
        notes.append(
            f"{len(found.crossings)} of {pairs} pairs would change places within {REACH:g} times "
            f"the FLOPs, {len(clear)} of them beyond the noise of seeds"
        )
        notes += [f"  {names[c.behind]} would overtake {names[c.ahead]}" for c in clear[:BEST]]
    notes += [f"{names[key]}: {why}; ranked last" for key, why in found.unstable.items()]
    return notes


def write_report(
    found: Fidelity, chosen: Chosen, design: Design, about: dict[str, Any], home: Path
) -> None:
    """Write the comparison as plain data and as a picture.

    Raises:
        RunError: if they cannot be written.
    """
    write(home / JSON, json.dumps(about | _plain(found, chosen, design), indent=1) + "\n")
    write(home / SVG, picture(found, chosen))


def _plain(found: Fidelity, chosen: Chosen, design: Design) -> dict[str, Any]:
    agreement, panel = found.agreement, found.panel
    rows = []
    for i, (member, large) in enumerate(zip(chosen.members, design.large, strict=True)):
        key = member.genome.key
        trend = found.trends.get(key)
        rows.append({
            "key": key, "genome": member.genome.text(), "origin": member.origin,
            "family": panel.families[i], "width": member.genome.d_model,
            "target_width": large.d_model, "params": panel.params[i],
            "target": _rounded(panel.target[i]), "unstable": found.unstable.get(key, ""),
            "gain_per_doubling": trend and _estimate(trend.slope),
            "scores": {s.name: _rounded(s.values[i]) for s in (panel.proxy, *panel.baselines)},
        })  # fmt: skip
    return {
        "trials": chosen.trials, "panel_seed": chosen.number,
        "verdict": {"kind": agreement.verdict.kind, "text": agreement.verdict.text},
        "steps": design.recipe.steps, "batch": design.recipe.batch, "context": design.context,
        "lr": design.recipe.lr, "schedule": design.recipe.schedule, "seeds": design.seeds,
        "genomes": agreement.genomes, "ceiling": round(agreement.ceiling, 4),
        "proxy_ceiling": agreement.proxy_ceiling and round(agreement.proxy_ceiling, 4),
        "share_of_ceiling": agreement.share and round(agreement.share, 4),
        "noise": round(agreement.noise, 5), "pairs": agreement.pairs,
        "resolvable": agreement.resolvable, "pairs_within": agreement.pairs_within,
        "random_regret": _rounded(agreement.random_regret),
        "proxy": _standing(agreement.proxy),
        "baselines": [_standing(standing) for standing in agreement.baselines],
        "crossings": [asdict(crossing) for crossing in found.crossings],
        "panel": rows,
        "versions": versions(),
    }  # fmt: skip


def _standing(standing: Standing) -> dict[str, Any]:
    of = standing.correlations
    return {
        "name": standing.name, "tau": _estimate(of.tau), "p": float(f"{standing.p:.3g}"),
        "spearman": _estimate(of.spearman), "spearman_given_params": _estimate(of.partial),
        "tau_within": _estimate(of.within), "tau_across": _estimate(of.across),
        "accuracy": _estimate(standing.accuracy), "regret": _rounded(standing.regret),
        "lead_of_proxy": _estimate(standing.lead),
    }  # fmt: skip


def _estimate(of: Estimate | None) -> list[float] | None:
    """Value, lower and upper end."""
    return None if of is None else _rounded((of.value, of.low, of.high))


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def picture(found: Fidelity, chosen: Chosen) -> str:
    """Proxy against target with standard errors, as SVG; unstable targets are hollow."""
    panel, tau = found.panel, found.agreement.proxy.tau
    groups = {"uniform": "of the space", "top": "best quarter", "anchor": "anchors"}
    signed = [
        statistics.mean(of) * (-1 if panel.proxy.maximize else 1) for of in panel.proxy.values
    ]
    pick = signed.index(min(signed))
    dots = []
    for i, member in enumerate(chosen.members):
        (x, x_error), (y, y_error) = _mean(panel.proxy.values[i]), _mean(panel.target[i])
        plain = member.genome.text(())
        label = plain if member.origin == "anchor" else "first pick" if i == pick else ""
        hollow = member.genome.key in found.unstable
        group = groups[member.origin]
        dots.append(Dot(x, y, x_error, y_error, group, member.genome.text(), label, hollow))
    name = panel.proxy.name
    title = f"{name} against loss at the size of the targets; tau {tau:.2f}"
    return draw_scatter(dots, title, f"{name} on fresh seeds", "loss on held-out text, nats")
