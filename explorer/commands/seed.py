"""`seed`: measures the results that the page shows first and writes them to assets/."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from explorer.commands import Command, runner_of, show
from explorer.recorded import SEEDS
from explorer.records import plain

OF_THIS_RUN = ("from_store", "unsaved", "measured_now")  # what a report says of the run that made it, which a recorded one has not
SPECS = (
    ("none", {}),
    ("rtn", {"bits": 8, "granularity": "channel"}),
    ("rtn", {"bits": 4, "granularity": "group", "group_size": 64}),
    ("gptq", {"bits": 4, "granularity": "group", "group_size": 64}),
    ("rtn", {"bits": 2, "granularity": "group", "group_size": 64}),
)


def work(args: argparse.Namespace) -> None:
    from explorer.experiment import last_report

    runner = runner_of(args.store)
    reports = [last_report(runner.run("demo", method, params), show) for method, params in SPECS]
    # The activations are the 16-bit model's, the same for all: one copy is enough to draw them.
    shared = {m.metric for m in reports[0].measurements if m.metric.startswith("activation") or m.metric == "outlier_channels"}
    reports[1:] = [dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric not in shared)) for r in reports[1:]]
    reports = [dataclasses.replace(r, provenance={name: value for name, value in r.provenance.items() if name not in OF_THIS_RUN}) for r in reports]
    SEEDS.write_text("[\n" + ",\n".join(json.dumps(plain(report)) for report in reports) + "\n]\n")
    print(f"wrote {SEEDS.name}: {len(reports)} reports", file=sys.stderr)


COMMAND = Command("seed", "measure the results that the page shows first and write them to assets/", lambda parser: None, work)
