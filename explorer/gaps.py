"""Which configurations of a page a figure cannot draw, and why, in words: what a recording left out, what is still measured. Pure functions of reports."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.findings import lacks, one_rate
from explorer.records import Report
from explorer.vocabulary import term

EVERYWHERE = ("decode_latencies", "memory_kv_cache", "weight_histogram")  # what every whole recording has


def absent(reports: Sequence[Report], needs: Sequence[str]) -> str:
    """Which of the reports a figure that needs these metrics cannot show, and why: they are not whole, or were recorded without; "" for none. What a
    configuration never has, such as the error of a layer in 16 bits, is not told.
    """
    lacking = [(r, [name for name in needs if name not in {m.metric for m in r.measurements}]) for r in one_rate(reports)]
    parts = [(words, [r.name for r, rest in lacking if rest and r.missing and r.stopped == stopped])
             for stopped, words in ((False, "Being measured"), (True, "Not measured, stopped"))]  # fmt: skip
    said = [f"{words}: {', '.join(names)}." for words, names in parts if names]
    thin = [(r, next(name for name in rest if applies(r, name))) for r, rest in lacking if not r.missing and any(applies(r, name) for name in rest)]
    return " ".join([*said, *(f"{r.name}: {term(name).called} {lacks(r)}." for r, name in thin)])


def applies(report: Report, metric: str) -> bool:
    """Whether a whole report of this configuration has a metric: few methods train, only what is rounded has errors, and the inputs of layers are looked
    at in 16 bits.
    """
    if metric.startswith(("activation_", "outlier_")):
        return report.experiment.spec.is_baseline
    return metric != "training_loss" and not (metric == "output_error" and report.experiment.spec.is_baseline)


def in_part(report: Report) -> bool:
    """Whether it was recorded without some of what a figure of each configuration draws, so that the page has gaps which Run fills."""
    return bool(report.provenance.get("recorded")) and not {m.metric for m in report.measurements}.issuperset(EVERYWHERE)
