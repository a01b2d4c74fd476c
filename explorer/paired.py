"""Whether two configurations differ that scored the same windows: the difference, window by window. Pure functions of reports, no torch.

How hard a window is moves all configurations alike; in the difference that cancels, which is why intervals that overlap say little about two of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from explorer.findings import known
from explorer.records import Measurement, Report, fitting
from explorer.sequential import student_t

Place = tuple[float, float | None, float | None]  # where a point stands on an axis, and the ends of its interval there
Mark = tuple[float, Place, Sequence[float] | None]  # x, y with its ends, and the means of its windows
# Metric -> the means of its windows.
WINDOWS = {"kld_mean": "kld_windows", "perplexity": "nll_delta_windows", "perplexity_delta": "nll_delta_windows"}

ONE_BY_ONE = "Each comparison stands at 95% by itself: about 1 in 20 of those between equals tells a difference by chance."


def mean_difference(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of at least two differences, with Student's t 95% interval; a window gives one value, as in `metrics.mean_interval`."""
    middle, half = fmean(values), student_t(0.05, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def windows_of(report: Report, metric: str) -> list[float] | None:
    """The means of a report's windows behind a metric; None where they were not kept, or tokens without a finite probability were left out of some."""
    found = report.find(WINDOWS[metric])
    return None if found is None or found.bad else found.value


def by_window(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> tuple[float, float, float] | None:
    """`mean_difference` of two lists of window means; None where one is missing, of other windows, of fewer than two, or not finite."""
    if not ours or not theirs or not len(ours) == len(theirs) > 1 or not all(isinstance(v, float | int) and math.isfinite(v) for v in (*ours, *theirs)):
        return None
    return mean_difference([a - b for a, b in zip(ours, theirs, strict=True)])


def why_not(report: Report, other: Report, metric: str) -> str:
    """Why two reports cannot be paired in a metric, as words that follow "because"; "" when they can."""
    ours, theirs = (dataclasses.replace(r.experiment.evaluation, text="") for r in (report, other))  # its digest stands for the text
    found = [r.find(WINDOWS.get(metric, "")) for r in (report, other)]
    if metric not in WINDOWS:
        return "this metric is not kept by window"
    if report.experiment.model != other.experiment.model or ours != theirs:
        return "they are of another model or text"
    if None in found:
        return "one was measured before windows were kept"
    if any(m.bad for m in found):
        return "tokens without a finite probability were left out"
    return "" if len(found[0].value) == len(found[1].value) > 1 else "there are too few windows"


def difference(report: Report, other: Report, metric: str) -> Measurement | None:
    """A report's metric less the other's, with its 95% interval over the n windows that both scored; None where `why_not` says why.

    kld_mean: nats. Of perplexity and perplexity_delta: how far the report's perplexity is from the other's, % of the other's.
    """
    if why_not(report, other, metric):
        return None
    ours, theirs = (r.value(WINDOWS[metric]) for r in (report, other))
    found = mean_difference([a - b for a, b in zip(ours, theirs, strict=True)])
    nats = metric == "kld_mean"
    value, low, high = found if nats else (100 * math.expm1(min(end, 700)) for end in found)
    return Measurement(f"{metric}_difference", value, "nats" if nats else "%", low=low, high=high, n=len(ours))


def plus_minus(found: Measurement) -> str:
    """A difference with half of its interval, both without a sign, in its unit: "0.0250 ± 0.0015 nats"."""
    half = (found.high - found.low) / 2
    return f"{fitting(abs(found.value), half)} ± {fitting(half, half)} {found.unit}"


def ranked(reports: Sequence[Report], most: int = 3) -> str:
    """The reports in order of their KL divergence, each beside the next, in at most so many sentences: by how much it is better, or that it
    cannot be told; where there are several sentences, how sure each is.
    """
    found = sorted((r for r in reports if known(r, "kld_mean") and not r.experiment.spec.is_baseline), key=lambda r: r.value("kld_mean"))
    told = [beside(a, b) for a, b in list(pairwise(found))[:most]]
    return " ".join([*told, *[ONE_BY_ONE] * (len(told) > 1)])


def beside(better: Report, worse: Report) -> str:
    """Whether a report's divergence is measurably below another's, in a sentence."""
    found = difference(better, worse, "kld_mean")
    if found is None:
        return f"{better.name} and {worse.name} are not paired: {why_not(better, worse, 'kld_mean')}."
    over = f"same {found.n} windows, paired"
    if found.high < 0:
        return f"{better.name} is {plus_minus(found)} below {worse.name} ({over})."
    return f"{better.name} and {worse.name} cannot be told apart: they differ by {plus_minus(found)} ({over})."


def clearly_better(one: Mark, other: Mark) -> bool:
    """Whether a point is below another in y: paired by window, or where that cannot be, beyond both intervals."""
    if (found := by_window(one[2], other[2])) is not None:
        return found[2] < 0
    (y, _, high), (their_y, low, _) = one[1], other[1]
    return (high if high is not None else y) < (low if low is not None else their_y)


def standing(points: Sequence[Mark]) -> list[str]:
    """For each point: "beaten" when one that is not larger in x is clearly better in y; else "best" when no other is at most as large in both and smaller
    in one, and "near" otherwise.
    """
    found = []
    for i, mark in enumerate(points):
        x, (y, *_), _ = mark
        others = [p for j, p in enumerate(points) if j != i and p[0] <= x]
        clear = any(clearly_better(p, mark) for p in others)
        ahead = any(b[0] <= y and (a < x or b[0] < y) for a, b, _ in others)
        found.append("beaten" if clear else "near" if ahead else "best")
    return found
