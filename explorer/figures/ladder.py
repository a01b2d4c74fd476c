"""Is this number good? Every metric placed on a measured ladder: the same model rounded to nearest at 8, 7, ... 2 bits."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from explorer.answers import ladder
from explorer.figures import COLOURS, MARKERS, Figure, Plot, finite, layout, plot
from explorer.records import Report, report_from

LADDER = Path(__file__).parent.parent.parent / "assets" / "ladder.json"
RUNGS = {"granularity": "group", "group_size": 64}  # of plain rounding, and every width
METRICS = {"kld_mean": "KL divergence", "perplexity_delta": "perplexity change", "top1_agreement": "same top token"}
UNITS = {"kld_mean": "nats", "perplexity_delta": "%", "top1_agreement": "%"}


@cache
def recorded() -> tuple[Report, ...]:
    """The ladder of the bundled model that ships with the project; empty when there is none."""
    reports = [report_from(data) for data in json.loads(LADDER.read_text())] if LADDER.exists() else []
    return tuple(reports)


def rungs_for(report: Report, others: Sequence[Report] = ()) -> list[Report]:
    """The ladder of a report's model and text, widest first: the recorded one or, for other models, the rungs among `others`."""
    return ladder([*others, *recorded()], report)


def loss(metric: str, value: float) -> float:
    """A metric as a loss that is 0 for the 16-bit model: disagreement instead of agreement."""
    return 100.0 - value if metric == "top1_agreement" else value


def place(metric: str, value: float, rungs: Sequence[Report]) -> float | None:
    """The stored bits that rounding to nearest needs for the same value, by interpolation of log loss between two rungs, widest first.

    A rung whose loss cannot be told from zero, or is no larger than a wider one's, is left out. The end of what is left when the value lies beyond
    it. None without two rungs.
    """
    points: list[tuple[float, float]] = []
    for rung in rungs:
        found, bits = rung.find(metric), rung.value("bits_per_weight")
        if found is None or not (finite(found.value) and finite(bits)) or (metric == "perplexity_delta" and not (finite(found.low) and found.low > 0)):
            continue
        lost = loss(metric, found.value)
        if lost > 0 and (not points or math.log(lost) > points[-1][1]):
            points.append((bits, math.log(lost)))
    if len(points) < 2 or not finite(value):
        return None
    lost = loss(metric, value)
    target = math.log(lost) if lost > 0 else -math.inf
    for (wide, small), (narrow, large) in itertools.pairwise(points):
        if target <= small:
            return wide
        if target <= large:
            return wide + (narrow - wide) * (target - small) / (large - small)
    return points[-1][0]


def ends(metric: str, report: Report, rungs: Sequence[Report]) -> tuple[float, float, float] | None:
    """(place, lowest, highest) of a report's metric on the ladder, the latter two from its interval; None when it cannot be placed."""
    found = report.find(metric)
    if found is None or (middle := place(metric, found.value, rungs)) is None:
        return None
    sides = [at for at in (place(metric, side, rungs) for side in (found.low, found.high) if finite(side)) if at is not None]
    return middle, min([middle, *sides]), max([middle, *sides])


def placed(reports: Sequence[Report]) -> list[tuple[int, Report, str, tuple[float, float, float]]]:
    """(position, report, metric, place with its ends) of all that can be placed."""
    found = []
    for i, report in enumerate(reports):
        rungs = rungs_for(report, reports)
        for metric in METRICS if not report.experiment.spec.is_baseline else ():
            at = ends(metric, report, rungs)
            if at is not None:
                found.append((i, report, metric, at))
    return found


def draw(reports: Sequence[Report], layer: str) -> Plot:
    traces: list[dict[str, Any]] = []
    found = placed(reports)
    shift = {i: 0.13 * (k - (len({i for i, *_ in found}) - 1) / 2) for k, i in enumerate(sorted({i for i, *_ in found}))}
    names = list(METRICS)
    for i in shift:
        mine = [(report, metric, at) for j, report, metric, at in found if j == i]
        report = mine[0][0]
        texts = [f"{METRICS[m]} {r.value(m):.4g} {UNITS[m]}: like RTN at {at[0]:.2f} bits ({at[1]:.2f} to {at[2]:.2f})" for r, m, at in mine]
        traces.append(
            {"type": "scatter", "mode": "markers", "x": [at[0] for *_, at in mine], "y": [names.index(m) + shift[i] for _, m, _ in mine], "name": report.name,
             "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5], "size": 10}, "customdata": texts, "hovertemplate": "%{customdata}",
             "error_x": {"type": "data", "symmetric": False, "array": [at[2] - at[0] for *_, at in mine], "arrayminus": [at[0] - at[1] for *_, at in mine]}}
        )  # fmt: skip
    rungs = rungs_for(found[0][1], reports) if found else []
    ticks = {"tickvals": [r.value("bits_per_weight") for r in rungs], "ticktext": [f"{r.experiment.spec.get('bits')} bits" for r in rungs]}
    axis = {"tickvals": list(range(len(names))), "ticktext": list(METRICS.values()), "range": [-0.5, len(names) - 0.5], "zeroline": False}
    shape = layout("bits of plain rounding", "", 320, yaxis=axis, xaxis=ticks if rungs else {})
    return plot(traces, shape | {"showlegend": True})


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report, metric, (middle, _, _) in placed(reports):
        if metric != "kld_mean":
            continue
        stored = report.value("bits_per_weight")
        worth = (
            f", {abs(middle - stored):.1f} {'more' if middle > stored else 'fewer'} than it stores" if finite(stored) and abs(middle - stored) >= 0.1 else ""
        )
        rungs = [r.value("bits_per_weight") for r in rungs_for(report, reports)]
        own = report.experiment.spec.method == "rtn"
        if middle == rungs[-1] and not own:
            parts.append(f"{report.name}: worse than the lowest rung, plain rounding at {middle:.1f} bits")
            continue
        least = "at least " if middle == rungs[0] and not own else ""
        parts.append(f"{report.name}: its divergence is that of plain rounding at {least}{middle:.1f} bits{worth}")
    if parts:
        return "; ".join(parts) + "."
    return "No ladder of this model yet: sweep RTN at 8 to 2 bits in Trade-offs and compare its points." if reports else "Nothing to place yet."


FIGURE = Figure(
    "ladder", "Is this number good?",
    "See how far right each marker stands: the ladder's rungs are plain rounding of the same model at 8 down to 2 bits, measured on the same text.",
    "A divergence of 0.02 nats says little by itself, and a good value for one model is a bad one for another. Beside the same model rounded to nearest it "
    "says: as good as plain rounding at this many bits. A method earns its effort when it stands right of the bits it stores. Where the three metrics "
    "disagree, trust the divergence: it uses every token's whole distribution. From seven bits up the rungs hold little but bfloat16's own rounding noise.",
    ("kld_mean", "bits_per_weight"), draw, summary, wide=True, order=2,
)  # fmt: skip
