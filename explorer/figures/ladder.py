"""Is this number good? Every metric placed on a measured ladder: the same model rounded to nearest at 8, 7, ... 2 bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from explorer import recorded
from explorer.answers import ladder
from explorer.figures import COLOURS, MARKERS, Figure, Plot, finite, layout, places, plot
from explorer.records import Report
from explorer.vocabulary import term

RUNGS = {"granularity": "group", "group_size": 64, "symmetric": False}  # of plain rounding, and every width
METRICS = ("kld_mean", "perplexity_delta", "top1_agreement")
OPEN = {"more": "triangle-right-open", "fewer": "triangle-left-open"}  # of a value beyond the ladder's ends


class Place(NamedTuple):
    """A place on the ladder in stored bits. end: "more" where the value lies beyond the widest rung that can be measured, "fewer" beyond the narrowest."""

    bits: float
    end: str = ""

    def __str__(self) -> str:
        return f"{self.bits:.2f} bits" + (f" or {self.end}" if self.end else "")


def rungs_for(report: Report, others: Sequence[Report] = ()) -> list[Report]:
    """The ladder of a report's model and text, widest first: the recorded one or, for other models, the rungs among `others`."""
    return ladder([*others, *recorded.ladder()], report)


def loss(metric: str, value: float) -> float:
    """A metric as a loss that is 0 for the 16-bit model: disagreement instead of agreement."""
    return 100.0 - value if metric == "top1_agreement" else value


def place(metric: str, value: float, rungs: Sequence[Report]) -> Place | None:
    """The stored bits that rounding to nearest needs for the same value, by interpolation of log loss between two rungs, widest first.

    A rung whose loss cannot be told from zero, or is no larger than a wider one's, is left out. The end of what is left, named as one, when the value
    lies beyond it. None without two rungs.
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
    if target < points[0][1]:
        return Place(points[0][0], "more")
    for (wide, small), (narrow, large) in itertools.pairwise(points):
        if target <= large:
            return Place(wide + (narrow - wide) * (target - small) / (large - small))
    return Place(points[-1][0], "fewer")


def ends(metric: str, report: Report, rungs: Sequence[Report]) -> tuple[Place, Place, Place] | None:
    """(place, lowest, highest) of a report's metric on the ladder, the latter two from its interval; None when it cannot be placed."""
    found = report.find(metric)
    if found is None or (middle := place(metric, found.value, rungs)) is None:
        return None
    sides = [at for at in (place(metric, side, rungs) for side in (found.low, found.high) if finite(side)) if at is not None]
    return middle, min([middle, *sides]), max([middle, *sides])


def placed(reports: Sequence[Report]) -> list[tuple[int, Report, str, tuple[Place, Place, Place]]]:
    """(place on the page, report, metric, place on the ladder with its ends) of all that can be placed."""
    found = []
    for i, report in zip(places(reports), reports, strict=True):
        rungs = rungs_for(report, reports)
        for metric in METRICS if not report.experiment.spec.is_baseline else ():
            at = ends(metric, report, rungs)
            if at is not None:
                found.append((i, report, metric, at))
    return found


def lost_in_noise(report: Report, metric: str) -> bool:
    """Whether a report's metric cannot be told from that of the 16-bit model; a divergence always can."""
    found = report.find(metric)
    return metric == "perplexity_delta" and not (finite(found.low) and found.low > 0)


def words(report: Report, metric: str, at: tuple[Place, Place, Place]) -> str:
    """A mark in words: the metric, where it stands, and how certain that is."""
    middle, low, high = at
    found = report.find(metric)
    number = f"{term(metric).called} {found.value:.3g} {found.unit}"
    if middle.end == "more" and lost_in_noise(report, metric):
        return f"{number}: {middle}, not measurable"
    if middle.end == "fewer":
        return f"{number}: worse than RTN at {middle.bits:.2f} bits"
    return f"{number}: like RTN at {middle}" + ("" if middle.end else f" ({low.bits:.2f} to {high})")


def draw(reports: Sequence[Report], layer: str) -> Plot:
    traces: list[dict[str, Any]] = []
    found = placed(reports)
    shift = {i: 0.13 * (k - (len({i for i, *_ in found}) - 1) / 2) for k, i in enumerate(sorted({i for i, *_ in found}))}
    for i in shift:
        mine = [(report, metric, at) for j, report, metric, at in found if j == i]
        report = mine[0][0]
        symbols = [OPEN.get(at.end, MARKERS[i % 5]) for _, _, (at, *_) in mine]
        up, down = [high.bits - at.bits for *_, (at, _, high) in mine], [at.bits - low.bits for *_, (at, low, _) in mine]
        traces.append(
            {"type": "scatter", "mode": "markers", "x": [at.bits for *_, (at, *_) in mine], "y": [METRICS.index(m) + shift[i] for _, m, _ in mine],
             "marker": {"color": COLOURS[i % 5], "symbol": symbols, "size": 10, "line": {"width": [2 if at.end else 0 for *_, (at, *_) in mine]}},
             "name": report.name, "customdata": list(itertools.starmap(words, mine)), "hovertemplate": "%{customdata}",
             "error_x": {"type": "data", "symmetric": False, "array": up, "arrayminus": down}}
        )  # fmt: skip
    rungs = rungs_for(found[0][1], reports) if found else []
    ticks = {
        "tickvals": [r.value("bits_per_weight") for r in rungs],
        "ticktext": [f"{r.value('bits_per_weight'):.2f}<br>RTN {r.experiment.spec.get('bits')}" for r in rungs],
    }
    axis = {"tickvals": list(range(len(METRICS))), "ticktext": [term(m).called for m in METRICS], "range": [-0.5, len(METRICS) - 0.5], "zeroline": False}
    shape = layout("stored bits of plain rounding (RTN)", "", 320, yaxis=axis, xaxis=ticks if rungs else {})
    return plot(traces, shape | {"showlegend": True})


def summary(reports: Sequence[Report], layer: str) -> str:
    parts, found = [], placed(reports)
    for _, report, metric, (middle, _, _) in found:
        if metric != "kld_mean":
            continue
        stored = report.value("bits_per_weight")
        worth = (
            f", {abs(middle.bits - stored):.2f} {'more' if middle.bits > stored else 'fewer'} than it stores"
            if finite(stored) and abs(middle.bits - stored) >= 0.1
            else ""
        )
        own = any(rung.experiment.spec == report.experiment.spec for rung in rungs_for(report, reports))
        if middle.end == "fewer" and not own:
            parts.append(f"{report.name}: worse than the lowest rung, plain rounding at {middle.bits:.2f} bits")
            continue
        least = "at least " if middle.end == "more" and not own else ""
        parts.append(f"{report.name}: its divergence is that of plain rounding at {least}{middle.bits:.2f} stored bits{worth}")
    if parts:
        return "; ".join(parts) + "." + beyond(found)
    return "No ladder of this model yet: run RTN at two widths or more, not symmetric, and compare them." if reports else "Nothing to place yet."


def beyond(found: Sequence[tuple[int, Report, str, tuple[Place, Place, Place]]]) -> str:
    """Every hollow mark that is drawn, by the end of the ladder that it lies beyond and whether it can be measured at all, in sentences."""
    marks: dict[str, list[str]] = {}
    for _, report, metric, (at, *_) in found:
        if at.end:
            why = "worse than the lowest rung" if at.end == "fewer" else "beyond the finest rung that can be measured"
            why = "not measurable" if at.end == "more" and lost_in_noise(report, metric) else why
            marks.setdefault(f"{why} in {term(metric).called} ({at})", []).append(report.name)
    return " Hollow: " + "; ".join(f"{', '.join(names)}, {how}" for how, names in marks.items()) + "." if marks else ""


FIGURE = Figure(
    "ladder", "Is this number good?",
    "See how far right each marker stands: the rungs are plain rounding of the same model, 8 down to 2 bits with scales and zeros, measured on the same text. "
    "A hollow one lies beyond the last rung that can be measured.",
    "A divergence of 0.02 nats says little by itself, and a good value for one model is a bad one for another. Beside the same model rounded to nearest it "
    "says: as good as plain rounding at this many bits. A method earns its effort when it stands right of the bits it stores. Where the three metrics "
    "disagree, trust the divergence: it uses every token's whole distribution. From seven bits up the rungs hold little but bfloat16's own rounding noise.",
    ("kld_mean", "bits_per_weight"), draw, summary, wide=True, order=2,
)  # fmt: skip
