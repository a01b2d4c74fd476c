"""`sweep`: a grid of experiments, methods x bits x groups x parameters x seeds; resumable, because every result is stored as soon as it is whole."""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from explorer.commands import Command, runner_of
from explorer.commands.run import add_circumstances, add_widths, circumstances, every_field, origin
from explorer.records import Answer, Event, InputError, Measurement, Progress, Report, plain

COLUMNS = (
    "bits_per_weight", "kld_mean", "perplexity_delta", "perplexity", "top1_agreement", "p_correct_change", "p_correct_rms", "kld_median", "kld_max",
    "weight_bytes",
    "decode_tokens_per_second", "decode_latency_p50", "decode_limit", "quantize_seconds",
)  # fmt: skip
SPREAD = ("kld_mean", "perplexity_delta", "perplexity", "top1_agreement")  # what differs with the calibration text
OWN_FLAGS = ("bits", "group_size", "granularity")  # parameters that are axes of their own
ABOUT = (
    "Intervals are 95% intervals over the evaluation text only: what another text of the same kind would change. What another draw of calibration text "
    "would change is told by --seeds 0,1,2: configurations that read calibration text run once a seed, with mean and standard deviation over the seeds."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = ABOUT
    parser.add_argument("--model", default="demo", help="demo, a hub id, or a folder")
    parser.add_argument("--methods", default="rtn,gptq", help="methods, separated by commas")
    parser.add_argument("--bits", default="2,3,4", help="widths, separated by commas")
    parser.add_argument("--group-size", default="64", help="group sizes, separated by commas; 0 for one scale an output channel")
    parser.add_argument("--seeds", "--seed", dest="seed", default="0", help="draws of the calibration text, separated by commas; 0 for its first windows")
    add_widths(parser)
    add_circumstances(parser)
    for name, words in every_field().items():
        if name not in OWN_FLAGS:
            several = "" if name == "rules" else " Several values, separated by commas, are an axis of the grid."
            parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUES", help=f"for the methods that have it. {words}{several}")
    parser.add_argument("--json", action="store_true", help="print one JSON document with all reports and the rows of the table")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row a configuration to a file, - for stdout")


def integers(text: str, flag: str) -> list[int]:
    """Numbers separated by commas. Raises InputError."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{flag} takes whole numbers separated by commas, such as 2,3,4; not {text[:40]!r}.") from error


def watch() -> Callable[[Event], None]:
    """Progress to stderr, one line a second at most, with the time left from the configurations done so far."""
    start, last = time.monotonic(), [0.0, -1]

    def show(event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Progress) and (now - last[0] > 1 or event.done != last[1]):
            last[:] = now, event.done
            left = f", about {(now - start) / event.done * (event.total - event.done):.0f} s left" if event.done else ""
            print(f"{event.stage}: {event.done}/{event.total} {event.detail}{left}", file=sys.stderr)

    return show


def rows(reports: Sequence[Report]) -> list[dict[str, object]]:
    """One flat row a report: label, method, parameters, texts, the whole-model numbers and their intervals, where and when they were measured; with
    several seeds the mean and standard deviation over them, the same in each of their rows.
    """
    spread = over_seeds(reports)
    found = []
    for report in reports:
        spec, read, scored = report.experiment.spec, report.experiment.calibration, report.experiment.evaluation
        row: dict[str, object] = {"label": report.name, "method": spec.method, "params": " ".join(f"{name}={value}" for name, value in spec.params)}
        row |= {"kv_bits": spec.kv_bits, "head_bits": spec.head_bits, "calibration": "", "sequences": "", "seed": ""}
        if reads(report):
            tokens = report.provenance.get("calibration_tokens", read.tokens)
            row |= {"calibration": read.source, "sequences": tokens // read.length, "seed": read.seed}
        row |= {"evaluation": scored.source, "tokens": report.provenance.get("tokens"), "length": scored.length}
        for name in COLUMNS:
            one = report.find(name) or Measurement(name, None)
            row[name] = one.value
            row |= {} if one.low is None else {f"{name}_low": one.low, f"{name}_high": one.high}
        row |= spread.get(drawn(report), {})
        row |= {"origin": origin(report, "quality"), "speed_origin": origin(report, "speed")}
        found.append(row | {"device": report.provenance.get("device"), "date": report.provenance.get("date")})
    return found


def reads(report: Report) -> bool:
    """Whether the configuration of a report reads calibration text."""
    from explorer.methods import build

    return build(report.experiment.spec.method, dict(report.experiment.spec.params)).reads_inputs()


def drawn(report: Report) -> tuple[Any, ...]:
    """What is the same in runs that differ by their draw of calibration text only."""
    return report.experiment.spec, report.experiment.model, report.experiment.evaluation


def over_seeds(reports: Sequence[Report]) -> dict[tuple[Any, ...], dict[str, float]]:
    """{`drawn` of a configuration that ran with several seeds: {"seeds": how many, "<metric>_seeds_mean": ..., "<metric>_seeds_sd": ...}}."""
    runs: dict[tuple[Any, ...], list[Report]] = {}
    for report in reports:
        runs.setdefault(drawn(report), []).append(report)
    found = {}
    for key, alike in runs.items():
        if len(alike) > 1:
            found[key] = {"seeds": float(len(alike))}
            for name in SPREAD:
                values = [value for report in alike if (value := report.value(name)) is not None]
                if len(values) > 1:
                    found[key] |= {f"{name}_seeds_mean": statistics.fmean(values), f"{name}_seeds_sd": statistics.stdev(values)}
    return found


def table(reports: Sequence[Report]) -> str:
    """The rows as CSV."""
    lines, found = io.StringIO(), rows(reports)
    names = list(dict.fromkeys(name for row in found for name in row))
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return lines.getvalue()


def notes(reports: Sequence[Report]) -> list[str]:
    """What must be said beside the table: the spread over seeds, and whether the speeds may be compared."""
    names = {drawn(report): report.name for report in reports}
    said = []
    for key, spread in over_seeds(reports).items():
        parts = [f"{name} {spread[f'{name}_seeds_mean']:.4g}, standard deviation {spread[f'{name}_seeds_sd']:.2g}" for name in SPREAD[:2]
                 if f"{name}_seeds_mean" in spread]  # fmt: skip
        said.append(f"{names[key]} over {spread['seeds']:.0f} seeds: {'; '.join(parts)}")
    timed = [origin(report, "speed") for report in reports if report.find("decode_tokens_per_second")]
    old = [how for how in timed if not how.startswith("measured now")]
    if old:
        said.append(f"{len(old)} of {len(timed)} speeds were not measured in this sweep (the oldest: {min(old, key=lambda how: how.split(', ')[-1])}): "
                    "compare no speeds of different times; --remeasure measures all of them now.")  # fmt: skip
    return said


def asked_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the task. Raises InputError."""
    seeds, options = integers(args.seed, "--seeds") or [0], circumstances(args)
    given = {name: value for name in every_field() if name not in OWN_FLAGS and (value := getattr(args, name)) is not None}
    return {
        "model": args.model, "methods": [name.strip() for name in args.methods.split(",") if name.strip()], "bits": integers(args.bits, "--bits"),
        "groups": integers(args.group_size, "--group-size"), "options": options | {"seed": seeds[0]}, "seeds": seeds, "again": args.remeasure,
        "further": {name: [value] if name == "rules" else [part.strip() for part in value.split(",") if part.strip()] for name, value in given.items()},
    }  # fmt: skip


def work(args: argparse.Namespace) -> None:
    asked = asked_of(args)
    if args.csv and str(args.csv) != "-":
        try:
            args.csv.write_text("")  # hours later would be late to learn that it cannot be written
        except OSError as error:
            raise InputError(f"The file {args.csv} cannot be written; choose another place.") from error

    reports, show, failed = list[Report](), watch(), dict[str, str]()
    for event in runner_of(args.store).do("sweep", asked):
        show(event)
        if isinstance(event, Report):
            reports.append(event)
        elif isinstance(event, Answer):
            failed = event.data["failed"]
    for line in [*(f"{name} could not run: {why}" for name, why in failed.items()), *notes(reports)]:
        print(line, file=sys.stderr)
    if args.json:
        print(json.dumps({"reports": [plain(report) for report in reports], "rows": plain(rows(reports)), "failed": failed}))
    if args.csv and str(args.csv) != "-":
        args.csv.write_text(table(reports))
    elif not args.json:
        print(table(reports), end="")


COMMAND = Command("sweep", "run a grid of experiments: methods x bits x groups x parameters x seeds; run it again to go on", arguments, work)
