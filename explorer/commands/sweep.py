"""`sweep`: a grid of experiments, methods x bits x groups x parameters x seeds; resumable, because every result is stored as soon as it is whole."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from explorer.commands import Command, document, runner_of, writable
from explorer.commands.run import add_circumstances, add_widths, circumstances, every_field
from explorer.findings import doubts
from explorer.records import Answer, Event, InputError, Progress, Report
from explorer.wide import FIXED, SPREAD, column, drawn, origin_of, over_seeds, rows, table
from explorer.writing import write

BITS, GROUP = "2,3,4", "64"
OWN_FLAGS = ("bits", "group_size", "granularity")  # parameters that are axes of their own
ABOUT = (
    "Intervals are 95% intervals over the evaluation text only: what another text of the same kind would change. What another draw of calibration text "
    "would change is told by --seeds 0,1,2: configurations that read calibration text run once a seed, with mean and standard deviation over the seeds."
)
TABLE = (
    "The CSV has a row a configuration, one that could not run included: its `error` says why. Columns are always the same, in the same order, and are named "
    "with their units: " + ", ".join(FIXED) + ". layers_kept counts matrices of the decoder blocks that stayed in 16 bits. _low and _high are the ends of a "
    "95% interval over evaluation windows, of the speed-ups over rounds of both loops in turn within one run, of decode_tokens_per_second the 20th and 80th "
    "percentile of single tokens, of time_to_first_token_seconds the least and the most of its runs. Any further number "
    "that was measured on the whole model follows as a column of its own, named the same way. Exit code 2: none of the configurations could run."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = ABOUT, TABLE
    parser.add_argument("--model", default="demo", help="demo, a hub id, or a folder")
    parser.add_argument("--methods", default="rtn,gptq", help="methods, separated by commas")
    parser.add_argument("--bits", default=None, help=f"widths, separated by commas; {BITS} unless given")
    parser.add_argument("--group-size", default=None, help=f"group sizes, separated by commas; 0 for one scale an output channel; {GROUP} unless given")
    parser.add_argument("--seeds", "--seed", dest="seed", default="0", help="draws of the calibration text, separated by commas; 0 for its first windows")
    add_widths(parser)
    add_circumstances(parser)
    for name, words in every_field().items():
        if name not in OWN_FLAGS:
            several = "" if name == "rules" else " Several values, separated by commas, are an axis of the grid."
            parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUES", help=f"for the methods that have it. {words}{several}")
    parser.add_argument("--json", action="store_true", help="print one JSON document with all reports and the rows of the table")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row a configuration to a file, - for stdout; beside --json a file")


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


def notes(reports: Sequence[Report]) -> list[str]:
    """What must be said beside the table: the spread over seeds, and whether the speeds may be compared."""
    names = {drawn(report): report.name for report in reports}
    said = []
    for key, spread in over_seeds(reports).items():
        parts = [f"{name} {spread[f'{name}_seeds_mean']:.4g}, standard deviation {spread[f'{name}_seeds_sd']:.2g}" for name in map(column, SPREAD[:2])
                 if f"{name}_seeds_mean" in spread]  # fmt: skip
        said.append(f"{names[key]} over {spread['seeds']} seeds: {'; '.join(parts)}")
    timed = [origin_of(report, "speed") for report in reports if report.find("decode_tokens_per_second")]
    old = [how for how in timed if not how.startswith("measured now")]
    if old:
        said.append(f"{len(old)} of {len(timed)} speeds were not measured in this sweep (the oldest: {min(old, key=lambda how: how.split(', ')[-1])}): "
                    "compare decode_speedup instead; --remeasure measures all of them now.")  # fmt: skip
    late = [report.name for report in reports if doubts(report)]
    if late:
        said.append(f"{len(late)} of {len(timed)} speeds were disturbed by other work (speed_note), so nothing is concluded from them: {', '.join(late[:5])}"
                    f"{' and more' if len(late) > 5 else ''}; --remeasure measures again.")  # fmt: skip
    return said


def asked_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the task. Raises InputError."""
    from explorer.grid import check_taken, grid
    from explorer.methods import catalogue
    from explorer.tasks.sweep import reads

    seeds = integers(args.seed, "--seeds") or [0]
    given = {name: value for name in every_field() if name not in OWN_FLAGS and (value := getattr(args, name)) is not None}
    further = {name: [value] if name == "rules" else listed(value) for name, value in given.items()}
    axes = listed(args.methods), integers(args.bits or BITS, "--bits"), integers(args.group_size or GROUP, "--group-size")
    asked = grid(catalogue(), *axes, further)
    check_taken(catalogue(), axes[0], axes[1] if args.bits else [], axes[2] if args.group_size else [])
    options = circumstances(args, any(map(reads, asked)))
    return {
        "model": args.model, **dict(zip(("methods", "bits", "groups"), axes, strict=True)), "options": options | {"seed": seeds[0]}, "seeds": seeds,
        "again": args.remeasure, "further": further,
    }  # fmt: skip


def listed(text: str) -> list[str]:
    """Words separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def work(args: argparse.Namespace) -> int:
    asked = asked_of(args)
    if args.json and str(args.csv) == "-":
        raise InputError("--json and --csv - would both print on stdout; give --csv a file, or leave one of the two out.")
    if args.csv and str(args.csv) != "-":
        writable(args.csv)

    from explorer.grid import left_out
    from explorer.methods import catalogue

    if told := left_out(catalogue(), asked["methods"], asked["bits"], asked["groups"]):
        print(told, file=sys.stderr)
    reports, show, answer = list[Report](), watch(), Answer("sweep", {})
    for event in runner_of(args.store).do("sweep", asked):
        show(event)
        if isinstance(event, Report):
            reports.append(event)
        elif isinstance(event, Answer):
            answer = event
    failed, found = answer.data["failed"], rows(reports, answer.data["refused"])
    for line in [*(f"{name} could not run: {why}" for name, why in failed.items()), *notes(reports)]:
        print(line, file=sys.stderr)
    if args.json:
        print(document({"reports": reports, "rows": found, "failed": failed}))
    if args.csv and str(args.csv) != "-":
        write(args.csv, table(found))
    elif not args.json:
        print(table(found), end="")
    return 0 if any(report.experiment.spec.method != "none" for report in reports) else 2


COMMAND = Command("sweep", "run a grid of experiments: methods x bits x groups x parameters x seeds; run it again to go on", arguments, work)
