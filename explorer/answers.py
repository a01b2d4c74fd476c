"""The three questions people ask of a quantized model, answered from its own report: why no faster or smaller, is it good, is it garbage.

Pure functions of reports; sentences are plain text. Where the numbers contradict the usual story, the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from explorer.detectors import sentence, verdicts
from explorer.findings import Finding, drowned, grid, known, level, unknown
from explorer.records import OUTSIDE, Measurement, Report, change, fitting, significant
from explorer.speeds import pace, slower_start, speed

MIB = 2**20
LOSSLESS = 8  # bits of plain rounding from which on what is better still counts as lossless


@dataclass(frozen=True)
class Answered:
    """A question, its answer in sentences, for the last one the level of its verdict, and for the first one the facts that it rests on."""

    question: str
    text: str
    level: str = ""
    facts: tuple[str, ...] = ()


def answers(report: Report, base: Report | None, rungs: Sequence[Report] = ()) -> list[Answered]:
    """The three answers for a quantized configuration beside the baseline; [] for the baseline itself. rungs: see `ladder`."""
    if report.experiment.spec.is_baseline:
        return []
    found = verdicts(report, base, rungs)
    return [
        Answered("Why is it not faster or smaller?", in_short(report, base), facts=(*size(report, base), *speed(report, base), *slower_start(report))),
        Answered("Is this number good?", place(report, rungs)),
        Answered("It runs, but is the output garbage?", garbage(found), level(found)),
    ]


def ladder(reports: Sequence[Report], report: Report) -> list[Report]:
    """The rungs for a report among others: plain rounding to nearest of the same model, on the same text, most bits first; one a width, in groups of 64 where
    there is a choice, the later one of two. With zero-points: a symmetric grid has a level fewer, at 2 bits three, and that is no measure of 2 bits.
    """
    ground = report.experiment.model, report.experiment.evaluation.digest
    rungs: dict[int, Report] = {}
    for other in reports:
        spec, theirs = other.experiment.spec, (other.experiment.model, other.experiment.evaluation.digest)
        plain = spec.method == "rtn" and spec.kv_bits == 16 and not any(spec.get(name) for name in ("clip", "rotate", "planted"))
        if theirs == ground and plain and spec.get("symmetric") is False and spec.get("granularity") in ("group", "channel"):
            bits = int(spec.get("bits", 0))
            if bits not in rungs or spec.get("group_size", 0) == 64 or "group_size" not in dict(rungs[bits].experiment.spec.params):
                rungs[bits] = other
    return [rungs[bits] for bits in sorted(rungs, reverse=True)]


def in_short(report: Report, base: Report | None) -> str:
    """How much smaller and how fast beside 16 bits, and on what that rests, in one sentence."""
    ours, theirs = known(report, "weight_bytes"), known(base, "weight_bytes")
    smaller = theirs.value / ours.value if ours and theirs else None
    told = [] if smaller is None else [f"{smaller:.1f} times smaller" if smaller >= 1.05 else "Not smaller"]
    fast, why = pace(report, base)
    told += [fast] if fast else []
    return f"{', '.join(told)}: {why}." if told else f"{why[:1].upper()}{why[1:]}."


def size(report: Report, base: Report | None) -> list[str]:
    """Stored against resident bits, and what did not shrink, each in a sentence."""
    stored, resident, total = (known(report, name) for name in ("bits_per_weight", "bits_per_weight_resident", "weight_bytes"))
    if stored is None or total is None:
        return [f"Its size {unknown(report)}."]
    words = f"It stores {stored.value:.2f} bits a weight, scales included"
    if resident is not None and resident.value > stored.value * 1.02:
        words += f", and holds {resident.value:.2f} in memory, the width that the kernel reads"
    words += "."
    start, kept = known(base, "weight_bytes"), known(report, "memory_kept")
    if start is None:
        return [words]
    ratio, hoped = start.value / total.value, 16 / stored.value
    whole = f"All weights take {total.value / MIB:.1f} MiB instead of {start.value / MIB:.1f}, {ratio:.1f} times less, not {hoped:.1f}"
    if kept is None or ratio > 0.98 * hoped:
        return [words, f"{whole}." if kept is None else f"{whole.rpartition(',')[0]}."]
    return [words, f"{whole}. {' '.join(shortfall(report, start.value, total.value, kept.value, stored.value))}"]


def shortfall(report: Report, start: float, total: float, kept: float, stored: float) -> list[str]:
    """Why memory did not shrink as the stored bits did, each cause in a sentence with the MiB that it adds, the larger first. In bytes: start of all weights
    in 16 bits, total now, kept of them in 16 bits. stored: bits a weight.
    """
    skipped = [name for name, why in report.provenance.get("skipped", {}).items() if why != OUTSIDE]
    left = "embedding, norms and head" if report.experiment.spec.head_bits == 16 else "embedding and norms"
    left += f", and {len(skipped)} skipped layer{'s' if len(skipped) > 1 else ''}" if skipped else ""
    wide, stayed = total - kept - (start - kept) * stored / 16, kept * (1 - stored / 16)
    resident = known(report, "bits_per_weight_resident")
    held = f"holding {resident.value:.2f} bits a weight where {stored:.2f} are stored" if resident else "holding more bits a weight than are stored"
    causes = [(stayed, f"{kept / MIB:.1f} MiB stayed in 16 bits ({left})"), (wide, held)]
    return [f"{what[:1].upper()}{what[1:]} adds {more / MIB:.1f} MiB." if what == held else f"{what}, which adds {more / MIB:.1f} MiB."
            for more, what in sorted(causes, reverse=True) if more > 0.02 * total]  # fmt: skip


def place(report: Report, rungs: Sequence[Report]) -> str:
    """Where its divergence lies on the ladder, and whether its perplexity changed measurably."""
    kld, delta = known(report, "kld_mean"), known(report, "perplexity_delta")
    if kld is None or delta is None:
        return "It cannot be said: no token had a finite probability." if report.find("kld_mean") else f"Its quality {unknown(report)}."
    measurable = delta.low is None or not math.isfinite(delta.low) or not delta.low <= 0 <= (delta.high or 0)
    words = f"Perplexity changes by {changed(delta, known(report, 'perplexity'))}" + (
        "." if measurable else ": no measurable change on this text, but the divergence is finer."
    )
    if floor := drowned(report):
        rounding = f"rounding to bfloat16, which alone is {significant(floor.value)} nats from float32"
        return f"{words} Mean KL divergence is {significant(kld.value)} nats, which cannot be told from {rounding}: as good as lossless."
    steps = [(r, k.value) for r in rungs if (k := known(r, "kld_mean")) and k.value > 0]
    if len(steps) < 2:
        return f"{words} Mean KL divergence is {significant(kld.value)} nats; there is no ladder of this model on this text to place it on."
    return f"{words} {rung(report, kld.value, steps)}"


def changed(delta: Measurement, reached: Measurement | None) -> str:
    """A change in perplexity with its interval in words; beyond 100% as a factor, with the perplexities it leads from and to, where that one is known."""
    words, interval = change(delta.value, delta.low, delta.high)
    words += f" ({interval})" if interval else ""
    if delta.value <= 100 or reached is None:
        return words
    half = (reached.high - reached.low) / 2 if reached.low is not None and reached.high is not None else 0.0
    factor = 1 + delta.value / 100
    return f"{words}, {fitting(reached.value / factor, half / factor)} → {fitting(reached.value, half)}"


def rung(report: Report, kld: float, steps: Sequence[tuple[Report, float]]) -> str:
    """A divergence between two rungs (report, divergence), most bits first: as many bits of plain rounding, interpolated on its logarithm."""
    stored = known(report, "bits_per_weight")
    cost = f" for {stored.value:.2f} bits stored" if stored else ""
    itself = next((r for r, _ in steps if r.experiment.spec == report.experiment.spec), None)
    if itself is not None:
        around = "; ".join(f"{r.name} {significant(value)}" for r, value in steps if r is not itself)
        return f"It is a rung of the ladder itself, at a mean KL divergence of {significant(kld)} nats{cost}. The other rungs: {around}."
    if kld < steps[0][1]:
        wide = int(steps[0][0].experiment.spec.get("bits", 0)) >= LOSSLESS
        top = f"{steps[0][0].name}, {'the top of the ladder' if wide else 'the widest rung measured'} ({significant(steps[0][1])})"
        return f"A mean KL divergence of {significant(kld)} nats is {'below' if wide else 'better than'} {top}{cost}{': as good as lossless' if wide else ''}."
    if kld > steps[-1][1]:
        return f"A mean KL divergence of {significant(kld)} nats is worse than {steps[-1][0].name}, the foot of the ladder ({significant(steps[-1][1])}){cost}."
    (upper, near), (lower, far) = next((a, b) for a, b in pairwise(steps) if a[1] <= kld <= b[1])
    share = math.log(kld / near) / math.log(far / near)
    bits = [float(r.value("bits_per_weight")) for r in (upper, lower)]
    worth = bits[0] + share * (bits[1] - bits[0])
    between = f"lies between {upper.name} ({significant(near)}) and {lower.name} ({significant(far)})"
    alike = grid(upper.experiment.spec) if grid(upper.experiment.spec) == grid(lower.experiment.spec) else ""
    words = f"A mean KL divergence of {significant(kld)} nats {between}: worth {worth:.1f} bits of RTN {alike}".rstrip() + (f",{cost}" if cost else "")
    if stored is None or abs(worth - stored.value) < 0.15:
        return words + ", so no more and no less than its size."
    return words + (", better than its size." if worth > stored.value else f", worse than RTN {alike or 'on the ladder'} at that size.")


def garbage(found: Sequence[Finding]) -> str:
    """The verdict of the detectors, and its weightiest numbers."""
    quality = next((f.says for f in found if f.name == "quality"), "")
    line = sentence(found)
    return line if quality in line else f"{line} {quality}".strip()
