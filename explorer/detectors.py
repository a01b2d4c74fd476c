"""Silent-failure guard: what a report gives away that no crash does. Pure functions of reports; each finding carries the numbers it rests on.

A detector names a bug when undoing that bug, or the trace that only it leaves, fits the measured weights. Its limit stands between what healthy runs
reach (over all methods and widths on the bundled model) and what the bug does; both are in the finding. What is merely bad is judged against the
ladder: rounding to nearest of the same model at 8 to 2 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from explorer.findings import BROKEN, OK, SUSPICIOUS, UNSURE, Evidence, Finding, awaited, beyond, cause, in_16_bits, known, level, short, words_of
from explorer.records import Report, change
from explorer.repetition import cycle, repetition

UNFINISHED = "unfinished"  # the name of the finding that a report is not whole
Detector = Callable[[Evidence], Finding | None]


def overflow(e: Evidence) -> Finding:
    tokens = e.report.find("kld_mean")
    if tokens is None:
        return Finding("overflow", UNSURE, "Not measured: whether all outputs are finite.")
    layers = [m.layer for m in e.report.measurements if m.metric == "integrity" and m.bad]
    layers = layers or [name for name, error in e.report.by_layer("output_error").items() if not math.isfinite(error)]
    limit = "One is too many: a healthy model has none."
    if not tokens.bad and not layers:
        return Finding("overflow", OK, f"All outputs on {tokens.n:,} tokens are finite.", limit)
    where = f"the first layer with infinities or NaN is {short(layers[:1])}" if layers else "no single layer shows it on the first window"
    return Finding("overflow", BROKEN, f"{tokens.bad:,} of {tokens.bad + tokens.n:,} tokens have NaN or infinite outputs; {where}.", limit, tuple(layers))


def zero(e: Evidence) -> Finding | None:
    offsets = e.integrity("offset_steps")
    if not offsets:
        return None
    limit = "Limit 0.25 and near a whole step: rounding errors cancel (healthy layers stay below 0.01), a zero-point off by one moves all weights by a step."
    worst = max(offsets, key=lambda name: abs(offsets[name]))
    words = f"The mean error of a layer's weights is at most {abs(offsets[worst]):.3f} steps of the grid"
    hits = [name for name, value in offsets.items() if abs(value) > 0.25]
    whole = all(abs(offsets[name] - round(offsets[name])) < 0.2 and round(offsets[name]) for name in hits)
    return beyond("zero", hits if whole else [], offsets, words, "the zero-point is off by a whole step", limit)


def undone(e: Evidence, name: str, key: str, below: float, undoing: str, wrong: str, why: str) -> Finding | None:
    """Does undoing a mistake bring a layer's weights closer? key: the integrity measure of the error after it; below: the ratio that says so."""
    ratios = e.ratio(key, "weight_error")
    if not ratios:
        return None
    hits = [layer for layer, ratio in ratios.items() if ratio < below]
    if hits:
        words = f"{undoing} the error of the weights falls to at most {max(ratios[layer] for layer in hits):.2f} times what it is"
    else:
        words = f"{undoing} the error of a layer's weights is at least {min(ratios.values()):.2f} times what it is"
    return beyond(name, hits, ratios, words, wrong, f"Limit {below:g}: {why}")


def nibbles(e: Evidence) -> Finding | None:
    why = "exchanging columns of a healthy matrix makes it worse, 1.5 times at 2 bits and 100 times at 8; where it helps, they were exchanged."
    wrong = "the order of codes within a byte is swapped"
    return undone(e, "nibbles", "exchanged_error", 0.8, "With neighbouring columns exchanged", wrong, why)


def transposed(e: Evidence) -> Finding | None:
    why = "reading healthy scales in the wrong order makes it worse; where it helps, they are in the wrong order now."
    return undone(e, "transposed", "transposed_error", 0.9, "With the scales read in the other order", "scales are transposed", why)


def stale(e: Evidence) -> Finding | None:
    """The group index whose error stands out most in the middle layer."""
    profiles = [[v / median(errors) for v in errors] for errors in e.integrity("group_error").values() if len(errors) > 2 and median(errors) > 0]
    if not profiles:
        return None
    width = max(map(len, profiles))
    typical = [median(p[i] for p in profiles if len(p) > i) for i in range(width)]
    at = max(range(width), key=lambda i: typical[i])
    rest = max((v for i, v in enumerate(typical) if i != at), default=1.0)
    words = f"Group {at + 1} of the columns has {typical[at]:.2f} times its layer's middle error, the next worst group {rest:.2f} times"
    limit = "Limit 1.15, and 1.1 times the next worst: errors of healthy groups differ by chance, not at the same place in every layer."
    broken = typical[at] > 1.15 and typical[at] > 1.1 * rest
    return Finding("stale", BROKEN if broken else OK, words + (": its scale belongs to another group." if broken else "."), limit)


def fallback(e: Evidence) -> Finding | None:
    """Of layers whose weights rounding changed: those of zeros alone, or of a checkpoint that was rounded to the same grid before, are exact on codes, too."""
    weights = e.report.by_layer("weight_error")
    errors = {name: error for name, error in e.report.by_layer("output_error").items() if weights.get(name) != 0}
    if not errors:
        return None
    told = e.report.provenance.get("skipped", {})
    exact = [name for name, error in errors.items() if error == 0 and name not in told]
    stored, resident = e.report.value("bits_per_weight"), e.report.value("bits_per_weight_resident")
    limit = "None is allowed: changed weights cannot give the very outputs of the 16-bit ones. Layers that the report names as skipped do not count."
    if not exact:
        return Finding("fallback", OK, f"All {len(errors)} layers whose weights rounding changed give other outputs, so they do run on codes.", limit)
    cost = f" The run stores {stored:.2f} bits a weight and holds {resident:.2f} in memory." if stored and resident else ""
    words = f"{short(exact)} of {len(errors)} give exactly the 16-bit outputs: they were never quantized, and nothing says so.{cost}"
    return Finding("fallback", BROKEN, words, limit, tuple(exact))


def calibration(e: Evidence) -> Finding | None:
    """What the 16-bit model thinks of the calibration text, beside the evaluation text; and how much the calibration helped."""
    read, scored, delta = known(e.report, "calibration_perplexity"), known(e.report, "perplexity"), known(e.report, "perplexity_delta")
    if read is None or scored is None or delta is None:
        return None
    own = scored.value / (1 + delta.value / 100)
    words = f"The 16-bit model's perplexity is {read.value:,.1f} on the calibration text and {own:,.1f} on the evaluation text"
    plain, errors = e.integrity("rounding_error"), e.report.by_layer("output_error")
    ratios = [errors[name] / value for name, value in plain.items() if value and math.isfinite(errors.get(name, math.nan))]
    helped = f"; the error of the layers' outputs is {median(ratios):.2f} times that of plain rounding on the same grid" if ratios else ""
    limit = "Limit 5 times: text of another domain may double the perplexity; text that the model cannot read (46 times, shuffled) protects the wrong inputs."
    wrong = read.value > 5 * own
    return Finding("calibration", SUSPICIOUS if wrong else OK, words + helped + (": it was calibrated on the wrong text." if wrong else "."), limit)


def kernel(e: Evidence) -> Finding | None:
    run = e.report.by_layer("output_error")
    errors = {name: error for name, error in e.integrity("kernel_error").items() if run.get(name) != 0}  # 0: no kernel ran, see `fallback`
    if not errors:
        return None
    worst = max(errors, key=lambda name: errors[name])
    words = f"Kernels agree with the plain meaning of their weights to {errors[worst]:.4f} (relative), the worst is {short([worst])}."
    limit = "Limit 0.02: bfloat16 rounds outputs to 0.004; healthy runs stay below 0.008."
    return Finding("kernel", BROKEN if errors[worst] > 0.02 else OK, words, limit, (worst,) if errors[worst] > 0.02 else ())


def jump(e: Evidence) -> Finding | None:
    """A layer far above the layers of the same projection in other blocks."""
    kinds: dict[str, dict[str, float]] = {}
    for name, error in e.report.by_layer("output_error").items():
        if isinstance(error, float) and math.isfinite(error) and error > 0:
            kinds.setdefault(name.rsplit(".", 1)[-1], {})[name] = error
    ratios = {name: error / median(group.values()) for group in kinds.values() if len(group) > 2 for name, error in group.items()}
    if not ratios:
        return None
    worst = max(ratios, key=lambda name: ratios[name])
    words = f"The layer that stands out most from its like, {short([worst])}, has {ratios[worst]:.1f} times the middle output error of that projection."
    limit = "Limit 4: blocks differ by up to 1.8 times in healthy runs."
    return Finding("jump", SUSPICIOUS if ratios[worst] > 4 else OK, words, limit, (worst,) if ratios[worst] > 4 else ())


def rung(rungs: Sequence[Report], bits: int) -> Report | None:
    """The report of plain rounding to so many bits, or None."""
    return next((r for r in rungs if r.experiment.spec.get("bits") == bits), None)


def tail(e: Evidence) -> Finding | None:
    mean, p99 = known(e.report, "kld_mean"), known(e.report, "kld_p99")
    if not mean or not p99 or mean.value <= 0:
        return None
    theirs = [p.value / m.value for r in e.rungs if (m := known(r, "kld_mean")) and (p := known(r, "kld_p99")) and m.value > 0]
    top = max(theirs, default=6.0)
    ratio = p99.value / mean.value
    words = f"The worst 1% of tokens have {ratio:.1f} times the mean divergence or more; on the ladder of plain rounding it is at most {top:.1f} times."
    limit = f"Limit {2 * top:.0f}, twice the ladder's: a few positions that break hide behind a good mean."
    return Finding("tail", SUSPICIOUS if ratio > 2 * top else OK, words, limit)


def flips(e: Evidence) -> Finding | None:
    clear, same = known(e.report, "clear_flips"), known(e.report, "top1_agreement")
    if clear is None or same is None:
        return None
    words = f"{100 - same.value:.1f}% of tokens get another top token, {clear.value:.2f}% although the 16-bit model's leads by 20 points."
    three = known(rung(e.rungs, 3), "clear_flips")
    edge = three.value if three else 5.0
    limit = f"Suspicious above {edge:.1f}% clear flips, as many as 3-bit rounding makes, broken above 4 times that; flips of near-ties are harmless."
    return Finding("flips", BROKEN if clear.value > 4 * edge else SUSPICIOUS if clear.value > edge else OK, words, limit)


def quality(e: Evidence) -> Finding:
    """The place on the ladder: better than 3-bit rounding, worse, or worse than twice the perplexity."""
    delta = known(e.report, "perplexity_delta")
    if delta is None:
        return (
            Finding("quality", BROKEN, "No token has a finite probability.")
            if e.report.find("perplexity_delta")
            else Finding("quality", UNSURE, "Not measured.")
        )
    low = delta.low if delta.low is not None and math.isfinite(delta.low) else delta.value
    three = known(rung(e.rungs, 3), "perplexity_delta")
    edge = three.value if three else 25.0
    stands = f"3-bit rounding of this model costs {three.value:+.0f}%" if three else "no 3-bit rung of this model is known, 25% stands in"
    words = f"Perplexity changes by {change(delta.value, delta.low, delta.high)[0]}; {stands}."
    limit = f"Suspicious when the whole interval lies above {edge:.0f}%, broken above 100%: the model then hesitates between twice as many tokens."
    return Finding("quality", BROKEN if low > 100 else SUSPICIOUS if low > edge else OK, words, limit, cause=cause(e.report, e.rungs))


def repeats(e: Evidence) -> Finding | None:
    own = e.written or words_of(e.report)
    base = e.base_written or words_of(e.base)
    if not own or not base:
        return None
    ours, theirs, loop, their_loop = repetition(own), repetition(base), cycle(own), cycle(base)
    ends = f", and ends in a loop of {loop['period']}" if loop else ""
    ends += " like the baseline" if loop and their_loop else ""
    words = f"{100 * ours:.0f}% of 4-grams in its text are repeats, in the baseline's {100 * theirs:.0f}%{ends}."
    single = len(set(own)) <= 2 < len(set(base))
    stuck = single or ours > theirs + 0.5 or (loop is not None and theirs < 0.3)
    limit = "Limit 50 points above the baseline, or a loop where the baseline repeats less than 30%: small models loop by themselves."
    return Finding("repeats", BROKEN if single else SUSPICIOUS if stuck else OK, words, limit)


def skipped(e: Evidence) -> Finding | None:
    refused = e.report.refused()
    if not refused:
        return None
    words = "; ".join(line for line in in_16_bits(e.report) if line.endswith(tuple(refused.values())))
    limit = "One is too many: size, speed and quality are then partly those of 16 bits. The head, the embedding and what rules leave out do not count."
    return Finding("skipped", SUSPICIOUS, f"{words}.", limit, tuple(refused))


BUGS: tuple[Detector, ...] = (overflow, fallback, kernel, calibration, nibbles, zero, transposed, stale)
ONE = (nibbles, zero, transposed, stale)  # each explains a weight error; the first that does leaves nothing to explain for the others
SYMPTOMS: tuple[Detector, ...] = (quality, flips, tail, jump, repeats, skipped)


def verdicts(report: Report, base: Report | None, rungs: Sequence[Report] = (), written: Sequence[Any] = (), base_written: Sequence[Any] = ()) -> list[Finding]:
    """Every finding on a report, bugs first, then symptoms. rungs: reports of plain rounding of the same model. written: tokens of a longer text."""
    if report.experiment.spec.is_baseline:
        return []
    evidence = Evidence(report, base, rungs, written, base_written)
    return list(_found(evidence))


def _found(evidence: Evidence) -> Iterator[Finding]:
    if evidence.report.missing:
        yield Finding(UNFINISHED, UNSURE, f"Not all was looked at; {awaited(evidence.report)}.")
    if not evidence.report.by_layer("integrity") and "integrity" not in evidence.report.missing:
        yield Finding(
            "weights", UNSURE, "The packed weights were not checked: this report is older than that check, or its layers stayed in 16 bits. Run it again."
        )
    explained = False
    for detector in (*BUGS, *SYMPTOMS):
        finding = None if explained and detector in ONE else detector(evidence)
        if finding is not None:
            explained = explained or (detector in ONE and finding.bad)
            yield finding


def named(findings: Sequence[Finding]) -> str:
    """The bug that is found, by its name, or ""."""
    return next((f.name for f in findings if f.bad and f.name in {bug.__name__ for bug in BUGS}), "")


def sentence(findings: Sequence[Finding]) -> str:
    """The verdict in one line."""
    bad = [f for f in findings if f.bad]
    if not bad:
        if rest := next((f.says for f in findings if f.name == UNFINISHED), ""):
            return f"No sign of failure in {sum(f.level == OK for f in findings)} checks so far. {rest}"
        missing = "; the packed weights were not checked" if any(f.level == UNSURE for f in findings) else ""
        return f"No sign of failure in {sum(f.level == OK for f in findings)} checks{missing}."
    if named(findings):
        return f"{level(bad).capitalize()}: {next(f for f in bad if f.name == named(findings)).says}"
    rest = "" if len(bad) == 1 else f" {len(bad)} of {len(findings)} checks say so."
    checked = any(f.name in ("zero", "kernel") for f in findings) and bad[-1].name != "skipped"
    why = next((f.cause for f in findings if f.cause), "")
    clean = f" {'It does not look' if len(bad) == 1 else 'None of them looks'} like a bug{f': {why}' if why else ''}." if checked else ""
    return f"{level(bad).capitalize()}: {bad[0].says}{rest}{clean}"
