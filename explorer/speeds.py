"""What a report's times say, beside 16 bits and beside the rate of memory: nothing where other work disturbed them. Pure functions of reports, no torch.

Only what the numbers decide is said: how many fewer bytes a token reads and how much less time it takes; not what the rest of a token is spent on.
"""

from __future__ import annotations

from explorer.findings import LIMITS, busy, known, read_late, unknown
from explorer.records import Measurement, Report
from explorer.repeats import between

UNSETTLED = "other work disturbed its speed, so nothing is said of it until it is measured again"


def gain(report: Report | None, metric: str = "decode_speedup") -> Measurement | None:
    """How many times as fast as the 16-bit loop that was timed in turn with it, with its interval over the rounds of this run; None where that was not
    measured. Two speeds that were timed one after the other are never compared: on a shared machine they differ by half for the same code.
    """
    found = known(report, metric)
    return None if found is None or found.low is None or found.high is None else found


def judged(report: Report, metric: str = "decode_speedup") -> str:
    """ "faster" or "slower" than 16 bits, where that holds beyond the interval over rounds and beyond the factor by which runs of the same work differ, else
    "same"; "disturbed" where other work had the cores, "" where it was not measured.
    """
    found = gain(report, metric)
    if found is None or busy(report):
        return "" if found is None else "disturbed"
    factor = between(metric)
    if min(found.low, found.value / factor) > 1:
        return "faster"
    return "slower" if max(found.high, found.value * factor) < 1 else "same"


def share(report: Report) -> float | None:
    """Percent of a token's time that reading its bytes at the rate of memory takes; None where either was not measured, or was disturbed."""
    rate, limit = known(report, "decode_tokens_per_second"), known(report, "decode_limit")
    if rate is None or limit is None or limit.value <= 0 or busy(report) or read_late(report):
        return None
    return 100 * rate.value / limit.value


def fewer(report: Report, base: Report | None) -> float | None:
    """How many times fewer bytes a token reads than in 16 bits, the cache included; None where one of the two is not known."""
    read = []
    for one in (report, base):
        limit, rate = (known(one, name) for name in LIMITS)
        if limit is None or rate is None or limit.value <= 0:
            return None
        read.append(rate.value / limit.value)
    return read[1] / read[0]


def speed(report: Report, base: Report | None = None) -> list[str]:
    """Which kernel ran, what reading takes of a token, and whether it is faster than 16 bits, each in a sentence."""
    ours = known(report, "decode_tokens_per_second")
    if ours is None:
        return [f"Its speed {unknown(report)}."]
    kernel = report.provenance.get("kernel_summary", "an unknown kernel")
    words = f"It decodes {ours.value:.0f} tokens/s on {kernel}"
    refused = report.provenance.get("kernel_why", [])
    words += f" (no faster one serves it: {refused[0]})" if refused and "reference" in str(kernel) else ""
    if told := busy(report):
        return [f"{words}, but {told}."]
    return [f"{words}.", *reading(report), against(report, base)]


def reading(report: Report) -> list[str]:
    """What reading takes of a token at the rate of memory, in a sentence; [] where that is not known."""
    moved, limit = known(report, "decode_bandwidth"), known(report, "decode_limit")
    if limit is None or limit.value <= 0:
        return []
    if told := read_late(report):
        return [f"What reading takes of a token is not known: {told}; measure again."]
    once = "measured in the same process" if not moved or moved.n < 2 else f"the best of {moved.n} readings"
    at = f", {moved.value / 1e9:.1f} GB/s, {once if moved.how == 'measured' else 'the data sheet'}" if moved else ""
    part = f"Reading its bytes at the rate of memory (estimated{at}) takes {share(report):.0f}% of a token's time"
    return [f"{part}; what the rest is, this number does not tell."]


def against(report: Report, base: Report | None) -> str:
    """A report's speed beside the 16-bit loop's in the same run, and the bytes that it reads beside those of 16 bits."""
    found, said = gain(report), judged(report)
    if found is None:
        return "Whether that is faster than 16 bits is not known: no 16-bit loop was timed in turn with it."
    within = f"{found.low:.2f} to {found.high:.2f} within this run, {found.n} rounds in turn"
    apart = f"runs of the same work differ by a factor of {between():.2f}"
    if said == "same":
        inside = found.low <= 1 <= found.high
        return f"No measurable difference from 16 bits in the same run: {found.value:.2f} times as fast ({within}{'' if inside else f', and {apart}'})."
    words = f"It is {said}: {found.value:.2f} times as fast as 16 bits ({within}; {apart})."
    times = fewer(report, base)
    why = slower_by(report, times) if said == "slower" else ""
    return " ".join(filter(None, (words, beside_bytes(found, times), f"{why[:1].upper()}{why[1:]}." if why else "")))


def beside_bytes(found: Measurement, bytes_fewer: float | None) -> str:
    """How much of the time that fewer bytes would save was saved. found: a speed-up that differs from 1 measurably; "" where bytes are not known."""
    if bytes_fewer is None:
        return ""
    words = f"A token reads {bytes_fewer:.1f} times fewer bytes" if bytes_fewer > 1.02 else "A token reads no fewer bytes"
    if found.value < 1:
        return f"{words} and takes {1 / found.value:.1f} times as long."
    least, saved, most = (100 * (1 - 1 / value) for value in (found.low, found.value, found.high))
    taken = f"takes {saved:.0f}% less time ({least:.0f} to {most:.0f})"
    if bytes_fewer <= 1.02:
        return f"{words} and {taken}, so its kernels do the rest of their work in less time."
    if found.low > bytes_fewer and found.value / between() > bytes_fewer:
        return f"{words} and {taken}, more than bytes alone would save, so the rest of its work takes less time too."
    return f"{words} and {taken}; were time in proportion to bytes it would be {100 * (1 - 1 / bytes_fewer):.0f}% less."


def slower_by(report: Report, bytes_fewer: float | None) -> str:
    """What the kernels that ran do beside a 16-bit product, in words: what a loss in speed comes from; "" where as many bytes are read and no kernel says
    why.
    """
    ran = str(report.provenance.get("kernel_summary", ""))
    if rounds_inputs(report):
        return f"rounding the inputs{' and the int8 product take' if 'w8a8_int8' in ran else ' takes'} longer here than the bytes save"
    if "16-bit copy" in ran:
        return "no bytes are saved, the weights are a 16-bit copy here"
    if turns_inputs(report):
        return "turning the inputs and unpacking cost more here than the bytes save"
    return "" if bytes_fewer is not None and bytes_fewer <= 1.02 else "unpacking costs more here than the bytes save"


def slower_start(report: Report) -> list[str]:
    """That the first token takes measurably longer than in 16 bits; [] where it does not or that was not measured undisturbed."""
    found = gain(report, "first_token_speedup")
    if found is None or judged(report, "first_token_speedup") != "slower":
        return []
    summary = str(report.provenance.get("kernel_summary", ""))
    longer = f"{1 / found.value:.2f} times as long as in 16 bits ({1 / found.high:.2f} to {1 / found.low:.2f} within this run, {found.n} rounds in turn)"
    if not rounds_inputs(report) and "16-bit copy" in summary:
        return [f"Its first token takes {longer}."]
    work = "rounding the inputs" if rounds_inputs(report) else "turning the inputs" if turns_inputs(report) else "unpacking"
    return [f"Its first token takes {longer}. A prompt is many rows at once, where weights are read once for all of them and {work} is extra work."]


def rounds_inputs(report: Report) -> bool:
    """Whether a kernel ran that multiplies inputs in low bits."""
    return any(name in str(report.provenance.get("kernel_summary", "")) for name in ("w8a8", "block_float"))


def turns_inputs(report: Report) -> bool:
    """Whether inputs are turned by a Hadamard matrix before each product."""
    return bool(report.experiment.spec.get("rotate"))


def pace(report: Report, base: Report | None) -> tuple[str, str]:
    """(how fast beside 16 bits, why or on what it rests) in short, "" for what is not known."""
    found, said = gain(report), judged(report)
    told = {"faster": f"{found.value:.2f} times as fast as 16 bits", "slower": "slower"} if found else {}
    told |= {"same": "no measurable difference in speed"}
    if busy(report):
        return "", UNSETTLED
    if said == "slower" and (why := slower_by(report, fewer(report, base))):
        return told[said], why
    part = share(report)
    return told.get(said, ""), f"what limits its speed {unknown(report)}" if part is None else f"reading its bytes takes {part:.0f}% of a token's time"
