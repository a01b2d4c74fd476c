"""Finding: what a detector says, with its numbers and its limit; Evidence: what it looks at. Pure data of reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explorer.records import BUSY, Measurement, QuantSpec, Report, change
from explorer.vocabulary import CALIBRATION, FAMILIES, FAMILY, LOOP, MEMORY, ROUNDS, TEXT, term

OK, UNSURE, SUSPICIOUS, BROKEN = "ok", "unknown", "suspicious", "broken"
WORST = (BROKEN, SUSPICIOUS, UNSURE, OK)


@dataclass(frozen=True)
class Finding:
    """What one detector says. name: the detector's, for a bug the bug's; level: ok, suspicious, broken or unknown (not measured); says: one sentence
    with its numbers; limit: where it would have changed its mind and why there; layers: where it shows; cause: what it comes from, if no bug.
    """

    name: str
    level: str
    says: str
    limit: str = ""
    layers: tuple[str, ...] = ()
    cause: str = ""

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


def origin(told: Mapping[str, Any], family: str = "") -> str:
    """Where numbers come from, by the provenance of a report or an answer: "recorded" and shipped, "stored" on this machine, "measured now", or some of
    them so. family: of the measurements of one metric alone; "" where it was not measured.
    """
    if told.get("recorded"):
        return "recorded"
    now = set(told.get("measured_now", ()))
    made = now | set(told.get("dates", ()))
    made &= {family} if family else made
    if family and not made:
        return ""
    if told.get("from_store") or (made and not made & now):
        return "stored"
    return "measured now" if made <= now else "partly measured now, partly stored"


def dated(report: Report, metric: str) -> str:
    """When a metric of a report was measured: others of it may have been at another time, and are stored apart."""
    p = report.provenance
    return str(p.get("dates", {}).get(FAMILY.get(metric, "")) or p.get("date", ""))


def awaited(report: Report) -> str:
    """That a report is not whole, and what it lacks, such as "being measured: speed" or "stopped: speed not measured"; "" of a whole one."""
    parts = ", ".join(FAMILIES.get(name, name) for name in report.missing if name != "training" or len(report.missing) == 1)  # few methods train
    return "" if not parts else f"stopped: {parts} not measured" if report.stopped else f"being measured: {parts}"


def lacks(report: Report) -> str:
    """What is said in the place of a number that a report has not."""
    if report.missing:
        return "not measured: stopped" if report.stopped else "being measured"
    return "not recorded" if report.provenance.get("recorded") else "not measured"


def words_of(report: Report | None) -> list[str]:
    """The report's sample text in words, [] without one."""
    text = report.value("sample_text") if report else None
    return text.split() if isinstance(text, str) else []


def short(layers: Sequence[str]) -> str:
    """Layers in words: one or two by name, more by number."""
    names = [" ".join(part for part in name.split(".") if part.isdigit() or part.endswith("proj")) or name for name in layers]
    return " and ".join(names) if len(names) < 3 else f"{len(names)} layers from {names[0]} to {names[-1]}"


LIMITS = ("decode_limit", "decode_bandwidth")


def one_rate(reports: Sequence[Report]) -> list[Report]:
    """Reports that are shown together, with their bandwidth limits from one read rate of memory for each device: the best that any of them read there,
    because other work only ever slows reads; recorded ones and those measured now apart. The limits then say in n how many readings there were.

    A limit that does not say its rate is left out beside those that do: nobody knows how many bytes it is for. Where none says it, all stay.
    """
    read: dict[tuple[Any, bool], list[Report]] = {}
    for report in reports:
        if known(report, "decode_bandwidth"):
            read.setdefault(timed_at(report), []).append(report)
    best = {where: max(alike, key=lambda r: r.value("decode_bandwidth")) for where, alike in read.items()}
    count = {where: len({r.value("decode_bandwidth") for r in alike}) for where, alike in read.items()}
    return [limited(report, best.get(timed_at(report)), count.get(timed_at(report), 0)) for report in reports]


def timed_at(report: Report) -> tuple[Any, bool]:
    """(device, whether it was recorded): reports of one place share a rate of memory."""
    return report.provenance.get("device"), bool(report.provenance.get("recorded"))


def limited(report: Report, best: Report | None, count: int) -> Report:
    """A report with the limit that the rate of the best of `count` readings allows."""
    limit, moved = known(report, "decode_limit"), known(report, "decode_bandwidth")
    if limit is None or best is None:
        return report
    kept = tuple(m for m in report.measurements if m.layer or m.metric not in (*LIMITS, "decode_bandwidth_waited"))
    if moved is None:
        return dataclasses.replace(report, measurements=kept)
    rate, waited = best.find("decode_bandwidth"), best.find("decode_bandwidth_waited")
    most = limit.value * rate.value / moved.value
    new = [dataclasses.replace(limit, value=most, n=count), dataclasses.replace(rate, n=count), *filter(None, [waited])]
    return dataclasses.replace(report, measurements=(*kept, *new))


def timed_on(told: Sequence[tuple[Any, bool]]) -> Any:
    """The device whose times are shown, of (device, whether recorded) of what is on the page: the last that measured now, else the first. Times of two
    devices are never put side by side.
    """
    return next((device for device, recorded in reversed(told) if not recorded), told[0][0] if told else "")


def counted(found: Measurement, report: Report) -> str:
    """What a measurement is over, in words, "" where nothing was counted. Text is drawn in windows and an interval is over them: all tokens of a window
    but its first are scored.
    """
    if not found.n:
        return ""
    words = term(found.metric)
    if words.source == MEMORY:
        return f"from the best of {found.n:,} readings of memory" if found.n > 1 else "from one reading of memory" if found.n else "from a reading of its own"
    text = report.experiment.calibration if words.source == CALIBRATION else report.experiment.evaluation
    windows, rest = divmod(found.n + found.bad, max(1, text.length - 1))
    if words.bounds is ROUNDS:
        return f"over {found.n:,} rounds of both loops in turn, within this run"
    if words.source not in (TEXT, CALIBRATION) or rest or not windows:
        return f"over {found.n:,} values"
    return f"over {windows:,} windows ({found.n:,} tokens)" if windows > 1 else f"over one window ({found.n:,} tokens)"


def busy(report: Report) -> str:
    """That other work had the cores while a report's tokens were timed, so that nothing follows from its times; "" where it had not or that was not
    measured.
    """
    lost = known(report, "decode_waited")
    waited = f"the machine was busy: threads waited {lost.value:.0f}% of their time for a core" if lost and lost.value > BUSY else ""
    return f"{waited}, so nothing is concluded; measure again when it is quiet" if waited else ""


def read_late(report: Report) -> str:
    """That other work had the cores while the rate of memory was read, which may be higher then; "" where it had not or that was not measured."""
    lost = known(report, "decode_bandwidth_waited")
    return f"threads waited {lost.value:.0f}% of their time for a core while memory was read, so it may be faster" if lost and lost.value > BUSY else ""


def doubt(report: Report, metric: str) -> str:
    """Why nothing is concluded from a metric of a report, "" where that may be."""
    source = term(metric).source
    return busy(report) if source == LOOP else read_late(report) if source == MEMORY else ""


def doubts(report: Report) -> list[str]:
    """All of these, each once."""
    return [told for told in (busy(report), read_late(report)) if told]


def unknown(report: Report) -> str:
    """That a number was not measured, or is being measured, after its name."""
    return f"{'is' if report.missing and not report.stopped else 'was'} {lacks(report).removesuffix(': stopped')}"


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


FEW = "this is what so few bits cost"
INPUTS = {"token": "inputs rounded too, with a scale a token", "tensor": "inputs rounded too, with one scale for a whole tensor",
          "static": "inputs rounded too, with a scale fixed beforehand"}  # fmt: skip


def grid(spec: QuantSpec) -> str:
    """What shares a scale, in words that follow a method's name, "" where the spec does not say."""
    shared = {"tensor": "with one scale for a whole tensor", "channel": "with one scale a row", "block": "with one scale a block"}
    groups = f"in groups of {spec.get('group_size')}" if spec.get("group_size") else ""
    return shared.get(str(spec.get("granularity", "group")), groups)


def zeros(spec: QuantSpec, rung: QuantSpec) -> bool:
    """Whether a rung has zero-points where a spec of its method has a symmetric grid."""
    return spec.method == rung.method and bool(spec.get("symmetric")) and not spec.get("full_range") and rung.get("symmetric") is False


def differences(spec: QuantSpec, rung: QuantSpec) -> list[str]:
    """In what a spec may be worse than a rung of the ladder, each in words."""
    parts = [f"the method ({spec.method})"] if spec.method != rung.method else []
    parts += [own.removeprefix("with ").replace("in groups", "groups")] if (own := grid(spec)) and own != grid(rung) else []
    parts += [INPUTS[str(spec.get("activation"))]] if spec.get("activation") in INPUTS else []
    parts += [what for name, what in (("rotate", "a rotation"), ("clip", "clipping")) if spec.get(name) and spec.method == rung.method]
    parts += ["a symmetric grid, which has a level fewer"] if zeros(spec, rung) else []
    parts += [f"a KV cache in {spec.kv_bits} bits"] if spec.kv_bits != 16 else []
    return parts + ([f"a head in {spec.head_bits} bits"] if spec.head_bits != 16 else [])


def cause(report: Report, rungs: Sequence[Report]) -> str:
    """What a perplexity comes from that no bug explains, judged by the rung of as many bits: the bits, where that one is not twice as good (ten
    times where it is broken itself), else what differs from it. "" where no such rung is known.
    """
    spec, stored, delta = report.experiment.spec, known(report, "bits_per_weight"), known(report, "perplexity_delta")
    if any(r.experiment.spec == spec for r in rungs):
        return FEW
    near = next((r for r in rungs if r.experiment.spec.get("bits") == spec.get("bits")), None)
    far = {id(r): abs(b.value - stored.value) for r in rungs if stored and (b := known(r, "bits_per_weight"))}
    same = near is not None
    near = near or min((r for r in rungs if far.get(id(r), 1.0) < 0.5), key=lambda r: far[id(r)], default=None)
    theirs = known(near, "perplexity_delta")
    if near is None or theirs is None or delta is None:
        return ""
    if delta.value < (10 if theirs.value > 100 else 2) * max(theirs.value, 0.5):
        return FEW
    rung, parts = near.experiment.spec, differences(spec, near.experiment.spec)
    who = "" if spec.method == rung.method else "plain rounding "
    costs = (
        f"{who}{grid(rung)}{' with zero-points' if zeros(spec, rung) else ''}".strip()
        + f" {'the same bits cost' if same and not who else 'costs'} {change(theirs.value)[0]}"
    )
    at = "" if same and not who else f" at {rung.get('bits')} bits"
    if len(parts) == 1:
        return f"the cause is {parts[0]}; {costs}{at}"
    what = f"what differs is {', '.join(parts[:-1])} and {parts[-1]}" if parts else "the bits are not the cause"
    return f"{what}; {costs}{at}"


def beyond(name: str, hits: Sequence[str], measured: Sequence[str] | dict[str, float], words: str, wrong: str, limit: str) -> Finding:
    """A finding of layers beyond a limit: broken where there is one."""
    if not hits:
        return Finding(name, OK, f"{words}.", limit)
    return Finding(name, BROKEN, f"{words}: {wrong} in {len(hits)} of {len(measured)} layers.", limit, tuple(hits))


def level(findings: Sequence[Finding]) -> str:
    """The worst level of all."""
    return next((name for name in WORST if any(f.level == name for f in findings)), OK)
