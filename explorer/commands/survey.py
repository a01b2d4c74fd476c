"""`survey`: measures every method on the bundled model and writes the table of docs/RESULTS.md to assets/."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from explorer.commands import Command, runner_of, show
from explorer.recorded import SURVEY
from explorer.records import plain

# Beside every method with its defaults: three bits, where methods part, and the variants people ask about.
SPECS = (
    *((method, {"bits": 3}) for method in ("rtn", "hqq", "awq", "gptq", "qat")), ("rtn", {"bits": 3, "rotate": True}), ("gptq", {"bits": 3, "rotate": True}),
    *((method, {"bits": 2}) for method in ("rtn", "hqq", "awq", "gptq")), ("quip", {"rotate": False}), ("quip", {"feedback": False}),
    *((method, {"bits": bits, "symmetric": False}) for method in ("rtn", "gptq") for bits in (2, 3, 4)),
    *((method, {"bits": bits, "full_range": True}) for method, bits in (("rtn", 2), ("gptq", 2), ("gptq", 3), ("gptq", 4))),
    ("gptq", {"bits": 2, "symmetric": False, "rotate": True}), ("nf4", {"double_quant": True}),
    *(("kquant", {"format": name}) for name in ("q2_k", "q3_k", "q5_k", "q6_k", "q4_k_m")), ("kquant", {"format": "q2_k", "importance": True}),
    ("mxfp", {"element": "e3m2"}), ("mxfp", {"element": "e4m3"}), ("dynamic_int8", {"granularity": "tensor", "activation": "tensor"}),
    ("smoothquant", {"activation": "static"}), ("fp8", {"element": "e5m2"}), ("fp8", {"granularity": "block"}),
    *((method, {"activation": "block"}) for method in ("nvfp4", "mxfp")), ("mxfp", {"activation": "e4m3"}),
    ("mxfp", {"element": "e4m3", "activation": "block"}),
)  # fmt: skip
SURVEYED = (
    "bits_per_weight",
    "bits_per_weight_resident",
    "memory_kept",
    "perplexity",
    "perplexity_delta",
    "kld_mean",
    "kld_floor",
    "kld_windows",
    "nll_delta_windows",
    "top1_agreement",
    "quantize_seconds",
    "decode_tokens_per_second",
    "decode_speedup",
    "first_token_speedup",
    "decode_waited",
    "decode_limit",
    "decode_bandwidth",
    "decode_bandwidth_waited",
    "weight_bytes",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", default="", help="comma-separated: measure only the rows of these and keep the others as they are")


def work(args: argparse.Namespace) -> None:
    from explorer.experiment import last_report
    from explorer.methods import build, methods

    wanted = args.methods.split(",") if args.methods else list(methods())
    for method in wanted:
        build(method, {})  # refuses a name that is none
    runner = runner_of(args.store)
    asked = [(method, params) for method, params in (*((name, {}) for name in methods()), *SPECS) if method in wanted]
    reports = [last_report(runner.run("demo", method, params), show) for method, params in asked]
    reports = [dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric in SURVEYED)) for r in reports]
    rows = [plain(report) for report in reports]
    for row in rows:
        row["provenance"] = {name: row["provenance"].get(name) for name in ("label", "instead", "device", "torch", "date", "kernel_summary", "text")}
    kept = [row for row in json.loads(SURVEY.read_text()) if row["experiment"]["spec"]["method"] not in wanted] if args.methods else []
    SURVEY.write_text("[\n" + ",\n".join(map(json.dumps, [*kept, *rows])) + "\n]\n")
    print(f"wrote {SURVEY.name}: {len(reports)} reports, {len(kept)} kept", file=sys.stderr)


COMMAND = Command("survey", "measure every method on the bundled model and write the table of docs/RESULTS.md to assets/", arguments, work)
