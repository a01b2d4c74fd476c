"""`reproduce`: repeats published WikiText-2 results on the models that can be reached. Exit code 1 when a row that ran is off its tolerance."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from explorer.commands import Command, runner_of, show
from explorer.records import InputError, plain


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="only rows of models whose name contains this")
    parser.add_argument("--folder", type=Path, help="a folder that holds this model, for models that the hub has in no safe format")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def work(args: argparse.Namespace) -> int:
    from explorer.reproduce import PUBLISHED, reproduce

    rows = tuple(row for row in PUBLISHED if args.model.lower() in row.model.lower())
    if not rows:
        raise InputError(f"No published row is of a model named {args.model[:40]!r}; models are {', '.join(dict.fromkeys(r.model for r in PUBLISHED))}.")
    if args.folder:
        if len({row.model for row in rows}) > 1:
            raise InputError("One folder holds one model; say which with --model.")
        rows = tuple(dataclasses.replace(row, model=str(args.folder)) for row in rows)
    outcomes = []
    for outcome in reproduce(runner_of(args.store), rows, show):
        outcomes.append(outcome)
        if not args.json:
            verdict = {True: "agrees", False: "DIFFERS", None: "not run"}[outcome.agrees]
            ends = "" if outcome.low is None else f" [{outcome.low:.2f}, {outcome.high:.2f}]"
            ours = f"{outcome.found:.2f}{ends}" if outcome.found is not None else outcome.why_not
            print(f"{verdict:8s} {outcome.row.title()}: published {outcome.row.perplexity} (within {outcome.row.tolerance:.1%}), here {ours}", flush=True)
    if args.json:
        print(json.dumps({"rows": [plain(outcome) | {"agrees": outcome.agrees, "note": outcome.row.note} for outcome in outcomes]}, indent=1))
    else:
        count = sum(outcome.found is not None for outcome in outcomes)
        print(f"{count} of {len(outcomes)} rows could be run, {sum(outcome.agrees is True for outcome in outcomes)} agree")
        for note in dict.fromkeys(outcome.row.note for outcome in outcomes if outcome.row.note):
            print(note)
    return int(any(outcome.agrees is False for outcome in outcomes))


COMMAND = Command("reproduce", "repeat published WikiText-2 results on the models that can be reached", arguments, work)
