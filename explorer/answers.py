"""The three questions people ask of a quantized model, answered from its own report: why no faster or smaller, is it good, is it garbage.

Pure functions of reports; sentences are plain text. Where the numbers contradict the usual story, the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from explorer.detectors import sentence, verdicts
from explorer.findings import Finding, drowned, grid, known, lacks, level
from explorer.records import BUSY, OUTSIDE, Measurement, Report, change, fitting, significant

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
        Answered("Why is it not faster or smaller?", in_short(report, base), facts=(*size(report, base), *speed(report), *slower_start(report))),
        Answered("Is this number good?", place(report, rungs)),
        Answered("It runs, but is the output garbage?", garbage(found), level(found)),
    ]


def ladder(reports: Sequence[Report], report: Report) -> list[Report]:
    """The rungs for a report among others: plain rounding to nearest of the same model, on the same text, most bits first; one a width, in groups of 64 where
    there is a choice, the later one of two.
    """
    ground = report.experiment.model, report.experiment.evaluation.digest
    rungs: dict[int, Report] = {}
    for other in reports:
        spec, theirs = other.experiment.spec, (other.experiment.model, other.experiment.evaluation.digest)
        plain = spec.method == "rtn" and spec.kv_bits == 16 and not any(spec.get(name) for name in ("clip", "rotate", "planted"))
        if theirs == ground and plain and spec.get("symmetric") and spec.get("granularity") in ("group", "channel"):
            bits = int(spec.get("bits", 0))
            if bits not in rungs or spec.get("group_size", 0) == 64 or "group_size" not in dict(rungs[bits].experiment.spec.params):
                rungs[bits] = other
    return [rungs[bits] for bits in sorted(rungs, reverse=True)]


def in_short(report: Report, base: Report | None) -> str:
    """How much smaller and how fast beside 16 bits, and what limits it, in one sentence without the numbers it rests on."""
    ours, theirs = known(report, "weight_bytes"), known(base, "weight_bytes")
    smaller = theirs.value / ours.value if ours and theirs else None
    told = [] if smaller is None else [f"{smaller:.1f} times smaller" if smaller >= 1.05 else "Not smaller"]
    found = gain(report)
    if found is not None:
        told.append(f"{found.value:.2f} times as fast as 16 bits" if found.low > 1 else "slower" if found.high < 1 else "no measurable difference in speed")
    if found is not None and found.high < 1:
        why = slower_by(report)
    elif (limit := known(report, "decode_limit")) is None or limit.value <= 0 or known(report, "decode_tokens_per_second") is None:
        why = f"what limits its speed {unknown(report)}"
    else:
        why = f"limited by {'reading the weights' if report.value('decode_bound') == 'bandwidth' else 'the overhead of each step, not by bytes'}"
    return f"{', '.join(told)}: {why}." if told else f"{why[:1].upper()}{why[1:]}."


def gain(report: Report | None, metric: str = "decode_speedup") -> Measurement | None:
    """How many times as fast as the 16-bit loop that was timed in turn with it, with its interval; None where that was not measured. Two speeds that were
    timed one after the other are never compared: on a shared machine they differ by half for the same code.
    """
    found = known(report, metric)
    return None if found is None or found.low is None or found.high is None else found


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
    if kept is None:  # a recorded survey does not say by part
        return [words, f"{whole}."]
    skipped = [name for name, why in report.provenance.get("skipped", {}).items() if why != OUTSIDE]
    left = "embedding, norms and head" if report.experiment.spec.head_bits == 16 else "embedding and norms"
    left += f", and {len(skipped)} skipped layer{'s' if len(skipped) > 1 else ''}" if skipped else ""
    return [words, f"{whole}: {kept.value / MIB:.1f} MiB of them stayed in 16 bits ({left})."]


def speed(report: Report) -> list[str]:
    """Which kernel ran, what bounds it, and whether it is faster than 16 bits beyond the interval, each in a sentence."""
    ours = known(report, "decode_tokens_per_second")
    if ours is None:
        return [f"Its speed {unknown(report)}."]
    kernel, limit = report.provenance.get("kernel_summary", "an unknown kernel"), known(report, "decode_limit")
    words = f"It decodes {ours.value:.0f} tokens/s on {kernel}"
    refused = report.provenance.get("kernel_why", [])
    words += f" (no faster one serves it: {refused[0]})" if refused and "reference" in str(kernel) else ""
    told = [f"{words}."]
    if limit is not None and limit.value > 0:
        bound = report.value("decode_bound")
        why = "reading the weights" if bound == "bandwidth" else "the overhead of each step, which fewer bits do not shorten"
        moved = known(report, "decode_bandwidth")
        once = "measured in the same process" if not moved or moved.n < 2 else f"the best of {moved.n} readings"
        at = f" at {moved.value / 1e9:.1f} GB/s, {once if moved.how == 'measured' else 'the data sheet'}" if moved else ""
        lost = known(report, "decode_bandwidth_waited")
        if moved and lost and lost.value > BUSY:
            at += f" while threads waited {lost.value:.0f}% of their time for a core, so memory may be faster: measure again"
        told.append(f"That is {100 * ours.value / limit.value:.0f}% of what memory bandwidth would allow (estimated{at}), so the limit is {why}.")
    return [*told, against(report)]


def unknown(report: Report) -> str:
    """That a number was not measured, or is being measured, after its name."""
    return f"{'is' if report.missing and not report.stopped else 'was'} {lacks(report).removesuffix(': stopped')}"


def against(report: Report) -> str:
    """A report's speed beside the 16-bit loop's in the same run. What a gain comes from is told only where there is one beyond the interval."""
    found = gain(report)
    if found is None:
        return "Whether that is faster than 16 bits is not known: no 16-bit loop was timed in turn with it."
    words = f"{found.value:.2f} times as fast as 16 bits ({found.low:.2f} to {found.high:.2f}, {found.n} rounds in turn)"
    if found.low <= 1 <= found.high:
        return f"It is {words}: no measurable difference."
    if found.high < 1:
        return f"It is {words}: slower. {(why := slower_by(report))[:1].upper()}{why[1:]}."
    if report.value("decode_bound") != "bandwidth":
        return f"It is {words}: faster although bandwidth is not the limit, so the gain is in the kernel (fewer or cheaper steps), not in the bytes."
    return f"It is {words}."


def rounds_inputs(report: Report) -> bool:
    """Whether a kernel ran that multiplies inputs in low bits."""
    return any(name in str(report.provenance.get("kernel_summary", "")) for name in ("w8a8", "block_float"))


def slower_by(report: Report) -> str:
    """What the kernels that ran do beside a 16-bit product, in words: what a loss in speed comes from."""
    ran = str(report.provenance.get("kernel_summary", ""))
    if rounds_inputs(report):
        return f"rounding the inputs{' and the int8 product take' if 'w8a8_int8' in ran else ' takes'} longer here than the bytes save"
    return "no bytes are saved, the weights are a 16-bit copy here" if "16-bit copy" in ran else "unpacking costs more here than the bytes save"


def slower_start(report: Report) -> list[str]:
    """That the first token takes longer than in 16 bits, beyond the interval over rounds; [] where it does not or that was not measured."""
    found = gain(report, "first_token_speedup")
    if found is None or found.high >= 1:
        return []
    longer = f"{1 / found.value:.2f} times as long as in 16 bits ({1 / found.high:.2f} to {1 / found.low:.2f}, {found.n} rounds in turn)"
    if not rounds_inputs(report) and "16-bit copy" in str(report.provenance.get("kernel_summary", "")):
        return [f"Its first token takes {longer}."]
    extra = "rounding the inputs" if rounds_inputs(report) else "unpacking"
    return [f"Its first token takes {longer}. A prompt is many rows at once, where weights are read once for all of them and {extra} is extra work."]


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
