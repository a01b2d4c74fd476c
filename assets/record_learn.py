"""Measures the runs that walkthroughs and questions need: `python -m assets.record_learn [--store FILE]` writes assets/learn/recorded.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from explorer.experiment import LocalRunner, last_report
from explorer.learn.runs import named_runs
from explorer.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the runs of the walkthroughs.")
    parser.add_argument("--store", type=Path, required=True, help="result file")
    runner = LocalRunner(Store(parser.parse_args().store))
    for name, ask in named_runs().items():
        positional, options = ask.arguments()
        report = last_report(runner.run(*positional, **options))
        kld, delta = report.find("kld_mean"), report.find("perplexity_delta")
        print(name, report.name, f"{report.value('bits_per_weight'):.4f} bits, delta {delta.value:.3f} [{delta.low:.3f}, {delta.high:.3f}] % "
              f"kld {kld.value:.5f} [{kld.low:.5f}, {kld.high:.5f}] same {report.value('top1_agreement'):.2f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
