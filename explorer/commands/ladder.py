"""`ladder`: plain rounding at 8 to 2 bits, on which every metric is placed; for the bundled model it writes assets/ladder.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from explorer.commands import Command, document, runner_of, show
from explorer.figures.ladder import METRICS, RUNGS
from explorer.recorded import LADDER
from explorer.records import plain
from explorer.wide import of_model

WIDTHS = (8, 7, 6, 5, 4, 3, 2)
KEPT = (*METRICS, "bits_per_weight", "perplexity", "kld_p99")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help="demo, a hub id, or a folder; only demo is written to assets/, another is kept in the store")
    parser.add_argument("--json", action="store_true", help="print the reports as one JSON document instead of writing them")


def work(args: argparse.Namespace) -> None:
    from explorer.experiment import last_report

    runner = runner_of(args.store)
    reports = [last_report(runner.run(args.model, "rtn", RUNGS | {"bits": width}), show) for width in WIDTHS]
    printed = args.json or args.model != "demo"
    reports = [dataclasses.replace(r, measurements=tuple(of_model(r) if printed else (m for m in r.measurements if m.metric in KEPT))) for r in reports]
    rows = [plain(report) for report in reports]
    for row in rows:
        row["provenance"] = {name: row["provenance"].get(name) for name in ("label", "device", "torch", "date", "text")}
    if printed:
        print(document({"reports": rows}))
        return
    LADDER.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"wrote {LADDER.name}: {len(rows)} reports", file=sys.stderr)


COMMAND = Command("ladder", "measure plain rounding at 8 to 2 bits, on which every metric is placed", arguments, work)
