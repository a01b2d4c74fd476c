"""Measures the runs and tasks that walkthroughs and questions need: `python -m assets.record_learn` writes assets/learn/recorded.json.

Only what their figures and expressions ask for is kept of a report.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from explorer.commands import store_path
from explorer.experiment import LocalRunner, last_report
from explorer.figures import figures
from explorer.learn.bank import questions
from explorer.learn.runs import FOLDER, RECORDED, named_runs, named_tasks
from explorer.learn.stories import stories
from explorer.records import Answer, Report, plain
from explorer.store import Store

ALWAYS = {"bits_per_weight", "perplexity", "perplexity_delta", "kld_mean", "top1_agreement"}
ALSO = {"quality": {"bits_per_weight"}, "layers": {"weight_error"}, "memory": {"memory_scales", "memory_kv_cache", "weight_bytes"},
        "activations": {"activation_kurtosis"}, "weights": {"weight_error"}, "speed": {"decode_limit", "decode_tokens_per_second", "decode_bound"}}  # fmt: skip
KEPT = ("label", "device", "torch", "date", "kernel_summary", "text", "calibration", "prompt")


def needs() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """({run: metrics that are needed}, {run: layers of which histograms are needed})."""
    metrics: dict[str, set[str]] = defaultdict(lambda: set(ALWAYS))
    layers: dict[str, set[str]] = defaultdict(set)
    for item in (*(step for story in stories().values() for step in story.steps), *questions().values()):
        for run in item.runs:
            if item.figure:
                metrics[run] |= set(figures()[item.figure].needs) | ALSO.get(item.figure, set())
                layers[run] |= {item.layer} if item.layer else set()
            metrics[run] |= {item.chart["metric"]} if "metric" in item.chart else set()
    texts = " ".join(path.read_text() for path in FOLDER.rglob("*.toml"))
    for run, metric in re.findall(r"\w+\('(\w+)', (?:'\w+', )?'(\w+)'\)", texts):
        metrics[run].add({"codes": "memory_codes", "kept": "memory_kept", "ratio": "outlier_channels", "llm_int8": "outlier_channels"}.get(metric, metric))
    for (run,) in re.findall(r"(?:first_loss|last_loss)\('(\w+)'()\)", texts) and [(r,) for r, _ in re.findall(r"(?:first_loss|last_loss)\('(\w+)'()\)", texts)]:
        metrics[run].add("training_loss")
    return metrics, layers


def trimmed(report: Report, metrics: set[str], layers: set[str]) -> dict:
    """A report's JSON form with these metrics only; histograms of these layers only; six digits."""
    kept = [m for m in report.measurements if m.metric in metrics and (not m.metric.endswith("histogram") or m.layer in layers)]
    data = plain(report)
    data["measurements"] = [plain(m) for m in kept]
    data["provenance"] = {name: report.provenance[name] for name in KEPT if name in report.provenance}
    for text in (data["experiment"]["evaluation"], data["experiment"]["calibration"]):
        text["text"] = ""  # the texts are written anew by name
    return json.loads(json.dumps(data), parse_float=lambda text: float(f"{float(text):.6g}"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runs of the walkthroughs and questions.")
    parser.add_argument("--store", type=Path, default=store_path(), help="result file")
    runner = LocalRunner(Store(parser.parse_args().store))
    metrics, layers = needs()
    reports, answers = {}, {}
    for name, ask in named_runs().items():
        positional, options = ask.arguments()
        reports[name] = trimmed(last_report(runner.run(*positional, **options)), metrics[name], layers[name])
        print(name, file=sys.stderr, flush=True)
    for name, (task, arguments) in named_tasks().items():
        answers[name] = plain(next(event for event in runner.do(task, arguments) if isinstance(event, Answer)))
        print(name, file=sys.stderr, flush=True)
    rows = {"reports": reports, "answers": answers}
    parts = [f'"{kind}": {{\n' + ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in found.items()) + "\n}" for kind, found in rows.items()]
    RECORDED.write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    main()
