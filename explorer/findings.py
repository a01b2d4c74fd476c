"""Finding: what a detector says, with its numbers and its limit; Evidence: what it looks at. Pure data of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from explorer.records import BUSY, Measurement, Report

OK, UNSURE, SUSPICIOUS, BROKEN = "ok", "unknown", "suspicious", "broken"
WORST = (BROKEN, SUSPICIOUS, UNSURE, OK)


@dataclass(frozen=True)
class Finding:
    """What one detector says. name: the detector's, for a bug the bug's; level: ok, suspicious, broken or unknown (not measured); says: one sentence
    with its numbers; limit: where it would have changed its mind and why there; layers: where it shows.
    """

    name: str
    level: str
    says: str
    limit: str = ""
    layers: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        return self.level in (SUSPICIOUS, BROKEN)


@dataclass(frozen=True)
class Evidence:
    """What detectors look at: the report, the baseline's (or None), the ladder's, and tokens written by the report's and the baseline's model."""

    report: Report
    base: Report | None
    rungs: Sequence[Report]
    written: Sequence[Any] = ()
    base_written: Sequence[Any] = ()

    def integrity(self, key: str) -> dict[str, Any]:
        """{layer: value} of one integrity measure, where it could be taken."""
        return {name: value[key] for name, value in self.report.by_layer("integrity").items() if value.get(key) is not None}

    def ratio(self, key: str, to: str) -> dict[str, float]:
        """{layer: an integrity measure over a layer's error}, where both are known and finite."""
        errors = {name: e for name, e in self.report.by_layer(to).items() if isinstance(e, float) and math.isfinite(e) and e > 0}
        return {name: value / errors[name] for name, value in self.integrity(key).items() if name in errors}


def known(report: Report | None, metric: str) -> Measurement | None:
    """A measurement whose value is a finite number, or None."""
    found = None if report is None else report.find(metric)
    return found if found is not None and isinstance(found.value, int | float) and math.isfinite(found.value) else None


def drowned(report: Report | None) -> Measurement | None:
    """The noise floor of a report's divergence where that is below twice the floor, so that it cannot be told from rounding to bfloat16; else None.

    Twice, because two models round, each on its own.
    """
    kld, floor = known(report, "kld_mean"), known(report, "kld_floor")
    return floor if kld is not None and floor is not None and 0 < kld.value < 2 * floor.value else None


def words_of(report: Report | None) -> list[str]:
    """The report's sample text in words, [] without one."""
    text = report.value("sample_text") if report else None
    return text.split() if isinstance(text, str) else []


def short(layers: Sequence[str]) -> str:
    """Layers in words: one or two by name, more by number."""
    names = [" ".join(part for part in name.split(".") if part.isdigit() or part.endswith("proj")) or name for name in layers]
    return " and ".join(names) if len(names) < 3 else f"{len(names)} layers from {names[0]} to {names[-1]}"


def busy(report: Report) -> str:
    """That other work had the cores while a report's tokens were timed, "" where it had not or that was not measured."""
    lost = known(report, "decode_waited")
    return f"the machine was busy: threads waited {lost.value:.0f}% of their time for a core; measure again" if lost and lost.value > BUSY else ""


def in_16_bits(report: Report) -> list[str]:
    """Which layers stayed in 16 bits and why, a line a reason; how many of all where the method could not round them."""
    skipped, refused = report.provenance.get("skipped", {}), report.refused()
    count, lines = len(report.provenance.get("kernels", {})) + len(refused), []
    for why in dict.fromkeys(skipped.values()):
        names = [name for name, reason in skipped.items() if reason == why]
        which = short(names).removeprefix(f"{len(names)} layers from ")
        which = f"{len(names)} of {count} layers ({which})" if names[0] in refused else short(names)
        lines.append(f"{which} in 16 bits: {why}")
    return lines


def beyond(name: str, hits: Sequence[str], measured: Sequence[str] | dict[str, float], words: str, wrong: str, limit: str) -> Finding:
    """A finding of layers beyond a limit: broken where there is one."""
    if not hits:
        return Finding(name, OK, f"{words}.", limit)
    return Finding(name, BROKEN, f"{words}: {wrong} in {len(hits)} of {len(measured)} layers.", limit, tuple(hits))


def level(findings: Sequence[Finding]) -> str:
    """The worst level of all."""
    return next((name for name in WORST if any(f.level == name for f in findings)), OK)
