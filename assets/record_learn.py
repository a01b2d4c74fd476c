"""Measures the runs and tasks that walkthroughs and questions need: `python -m assets.record_learn` writes assets/learn/recorded.json.

Of each report only what some figure or expression really reads is kept: everything is drawn and concluded once to find out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from explorer.experiment import LocalRunner, last_report
from explorer.figures import figures
from explorer.learn.bank import Question, questions
from explorer.learn.charts import draw
from explorer.learn.pose import grade, pose
from explorer.learn.runs import RECORDED, Ask, named_runs, named_tasks, recorded, recorded_answers
from explorer.learn.stories import Step, conclude, judge, stories
from explorer.recorded import seeds
from explorer.records import Answer, Measurement, Report, plain
from explorer.store import Store, bytes_from, place_from

ALWAYS = ("bits_per_weight", "perplexity", "perplexity_delta", "kld_mean", "top1_agreement")
KEPT = ("label", "instead", "device", "torch", "date", "kernel_summary", "text", "calibration", "prompt")


@dataclass(frozen=True)
class Seen(Report):
    """A report that notes what is read of it, also through a copy with other numbers: (metric, layer), with "*" for all layers."""

    read: set[tuple[str, str]] = field(default_factory=lambda: {(metric, "") for metric in ALWAYS})

    @classmethod
    def of(cls, report: Report) -> Seen:
        return cls(report.experiment, report.measurements, report.provenance)

    def find(self, metric: str, layer: str = "") -> Measurement | None:
        self.read.add((metric, layer))
        return super().find(metric, layer)

    def by_layer(self, metric: str) -> dict[str, Any]:
        self.read.add((metric, "*"))
        return super().by_layer(metric)

    def trimmed(self) -> dict:
        """The JSON form of the report with what was read, to six digits."""
        kept = [m for m in self.measurements if (m.metric, m.layer) in self.read or (m.layer and (m.metric, "*") in self.read)]
        data = plain(Report(self.experiment, tuple(kept), {name: self.provenance[name] for name in KEPT if name in self.provenance}))
        for text in (data["experiment"]["evaluation"], data["experiment"]["calibration"]):
            text["text"] = ""  # texts are written anew by name
        return json.loads(json.dumps(data), parse_float=lambda text: float(f"{float(text):.6g}"))


def seeded(ask: Ask) -> Report | None:
    """What `make seeds` measured of this run, on an idle machine: its speed is worth showing, and nothing is measured twice."""
    for report in seeds():
        spec = report.experiment.spec
        if spec.method == ask.method and not ask.options and ask.params.items() <= dict(spec.params).items():
            return report
    return None


def shortened(answer: Answer) -> dict:
    """The JSON form of an answer; of a report inside it only what expressions ask of planted bugs."""
    data = plain(answer)
    if isinstance(data["data"].get("report"), dict):
        report = data["data"]["report"]
        report["measurements"] = [m for m in report["measurements"] if m["metric"] in (*ALWAYS, "output_error", "weight_error")]
        report["provenance"] = {name: report["provenance"][name] for name in KEPT if name in report["provenance"]}
    return data


def use(item: Step | Question, reports: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
    """Draws and concludes, so that what is read is noted."""
    if item.figure:
        figure, shown = figures()[item.figure], [reports[name] for name in item.runs]
        figure.draw(shown, item.layer)
        figure.summary(shown, item.layer)
    if item.chart:
        draw(item.chart, item.runs, reports, answers)
    if isinstance(item, Step):
        conclude(item, reports, answers)
        judge(item, 0, reports, answers)
    elif item.kind in ("numeric", "order"):
        for seed in map(str, range(40)):
            grade(pose(item, seed), 0, reports)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runs of the walkthroughs and questions.")
    parser.add_argument("--store", type=Path, default=place_from(), help="result file")
    parser.add_argument("--keep", action="store_true", help="measure only what is not recorded yet; new figures or metrics of old runs need a whole record")
    args = parser.parse_args()
    runner = LocalRunner(Store(args.store, bytes_from()))
    reports = {name: Seen.of(report) for name, report in recorded().items() if args.keep}
    answers = dict(recorded_answers()) if args.keep else {}
    for name, ask in named_runs().items():
        if seed := seeded(ask):
            reports[name] = Seen.of(seed)
        elif name not in reports:
            positional, options = ask.arguments()
            reports[name] = Seen.of(last_report(runner.run(*positional, **options)))
            print(name, file=sys.stderr, flush=True)
    for name, (task, arguments) in named_tasks().items():
        if name not in answers:
            answers[name] = next(event for event in runner.do(task, arguments) if isinstance(event, Answer))
            print(name, file=sys.stderr, flush=True)
    for item in (*(step for story in stories().values() for step in story.steps), *questions().values()):
        use(item, reports, answers)
    rows = {"reports": {name: seen.trimmed() for name, seen in reports.items()}, "answers": {name: shortened(answer) for name, answer in answers.items()}}
    parts = [f'"{kind}": {{\n' + ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in found.items()) + "\n}" for kind, found in rows.items()]
    RECORDED.write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    main()
