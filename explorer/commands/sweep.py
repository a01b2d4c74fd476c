"""`sweep`: a grid of experiments, methods x bits x groups; resumable, because every result is stored as soon as it is whole."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from explorer.commands import Command
from explorer.records import Answer, Event, InputError, Measurement, Progress, Report, plain

COLUMNS = (
    "bits_per_weight", "kld_mean", "perplexity_delta", "perplexity", "top1_agreement", "weight_bytes", "decode_tokens_per_second", "decode_latency_p50",
    "decode_limit", "quantize_seconds",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help="demo, a hub id, or a folder")
    parser.add_argument("--methods", default="rtn,gptq", help="methods, separated by commas")
    parser.add_argument("--bits", default="2,3,4", help="widths, separated by commas")
    parser.add_argument("--group-size", default="64", help="group sizes, separated by commas; 0 for one scale an output channel")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the evaluation text that are scored; 0 for all")
    parser.add_argument("--json", action="store_true", help="print one JSON document with all reports")
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
    """One flat row a report: label, method, parameters, the whole-model numbers and their intervals, device."""
    found = []
    for report in reports:
        row: dict[str, object] = {"label": report.name, "method": report.experiment.spec.method}
        row["params"] = " ".join(f"{name}={value}" for name, value in report.experiment.spec.params)
        for name in COLUMNS:
            one = report.find(name) or Measurement(name, None)
            row[name] = one.value
            row |= {} if one.low is None else {f"{name}_low": one.low, f"{name}_high": one.high}
        found.append(row | {"device": report.provenance.get("device"), "date": report.provenance.get("date")})
    return found


def table(reports: Sequence[Report]) -> str:
    """The rows as CSV."""
    lines, found = io.StringIO(), rows(reports)
    names = list(dict.fromkeys(name for row in found for name in row))
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return lines.getvalue()


def work(args: argparse.Namespace) -> None:
    asked = {
        "model": args.model, "methods": [name.strip() for name in args.methods.split(",") if name.strip()], "bits": integers(args.bits, "--bits"),
        "groups": integers(args.group_size, "--group-size"), "options": {"tokens": args.tokens},
    }  # fmt: skip
    if args.csv and str(args.csv) != "-":
        try:
            args.csv.write_text("")  # hours later would be late to learn that it cannot be written
        except OSError as error:
            raise InputError(f"The file {args.csv} cannot be written; choose another place.") from error
    from explorer.experiment import LocalRunner
    from explorer.store import Store

    reports, show, failed = list[Report](), watch(), dict[str, str]()
    for event in LocalRunner(Store(args.store)).do("sweep", asked):
        show(event)
        if isinstance(event, Report):
            reports.append(event)
        elif isinstance(event, Answer):
            failed = event.data["failed"]
    for name, why in failed.items():
        print(f"{name} could not run: {why}", file=sys.stderr)
    if args.json:
        print(json.dumps({"reports": [plain(report) for report in reports], "failed": failed}))
    if args.csv and str(args.csv) != "-":
        args.csv.write_text(table(reports))
    elif not args.json:
        print(table(reports), end="")


COMMAND = Command("sweep", "run a grid of experiments: methods x bits x groups; run it again to go on", arguments, work)
