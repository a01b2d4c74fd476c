"""`speed`: what limits decoding a configuration on this machine, and with --batch how it fares with many sequences beside 16 bits and W8A8.

`--record` writes the answers to assets/, for the page to open with.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from explorer.commands import Command, document, runner_of, show
from explorer.commands.run import add_method, parameters
from explorer.figures.roofline import above
from explorer.records import plain

RECORDED = Path(__file__).parent.parent.parent / "assets" / "speed.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    parser.add_argument("--batch", type=int, default=0, help="sweep batches of 1, 2, 4, ... up to this many sequences")
    parser.add_argument("--context", type=int, default=64, help="tokens of each prompt in the sweep")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--record", action="store_true", help=f"measure both and write them to assets/{RECORDED.name}")


def work(args: argparse.Namespace) -> None:
    from explorer.records import Answer

    runner = runner_of(args.store)
    asked: dict[str, Any] = {
        "model": args.model, "method": args.method, "params": parameters(args), "kv_bits": args.kv_bits, "head_bits": args.head_bits,
    }  # fmt: skip
    sweeping = {"batch": {"context": args.context, "largest": args.batch}} if args.batch else {}
    more: dict[str, dict[str, Any]] = {"roofline": {}} | sweeping if args.record else sweeping or {"roofline": {}}
    found: dict[str, Any] = {}
    for task, further in more.items():
        for event in runner.do(task, asked | further):
            show(event)
            if isinstance(event, Answer):
                found[task] = plain(event.data | {"provenance": event.provenance})
                text = {"batch": sweep, "roofline": limits}[task](event.data)
                print(document(event.data | {"provenance": event.provenance}) if args.json else f"{event.provenance['device']}\n{text}")
    if args.record:
        RECORDED.write_text("{\n" + ",\n".join(f"{json.dumps(task)}: {json.dumps(data)}" for task, data in found.items()) + "\n}\n")
        print(f"wrote {RECORDED.name}: {', '.join(found)}", file=sys.stderr)


def limits(data: dict[str, Any]) -> str:
    """The answer of the task roofline as text."""
    roof, step = data["roof"], data["step"]
    rows = [f"{data['label']} on {data['model']}, {data['loop']}: p50 {1e3 * step['p50']:.3f} ms, p95 {1e3 * step['p95']:.3f} ms a token"]
    rows.append(f"roof: read {roof['read'] / 1e9:.1f} GB/s, copy {roof['copy'] / 1e9:.1f} GB/s, bfloat16 matmul {roof['matmul_16'] / 1e9:,.0f} GFLOP/s")
    for op in data["ops"]:
        rate, share = op["bytes"] / op["seconds"], op["bytes"] / op["seconds"] / roof["read"]
        rows.append(f"{op['op']:18s} {1e3 * op['seconds']:8.3f} ms  {op['bytes'] / 1e6:9.2f} MB  {rate / 1e9:7.1f} GB/s  {share:5.0%}  {op['kernel']}")
    rows += [f"{op['op']} reads faster than the roof: {why}" for op in data["ops"] if (why := above(op, roof))]
    return "\n".join([*rows, data["sentence"]])


def sweep(data: dict[str, Any]) -> str:
    """The answer of the task batch as text."""
    rows = []
    for arm in data["arms"]:
        rows.append(f"{arm['role']}: {arm['label']}")
        for p in arm["points"]:
            rate = f"{p['tokens_per_second']:10,.1f} tokens/s [{p['low']:,.1f}, {p['high']:,.1f}]"
            rows.append(f"  batch {p['batch']:4d} {rate}  prompts {p['prefill_tokens_per_second']:10,.1f} tokens/s")
    return "\n".join([*rows, data["sentence"]])


COMMAND = Command("speed", "what limits decoding here, or with --batch a sweep over batch sizes", arguments, work)
