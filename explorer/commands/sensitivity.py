"""`sensitivity`: how much each layer costs at each width; `--record` writes what the page shows first to assets/."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from explorer.commands import Command, document, runner_of, show
from explorer.records import Answer, plain, significant

RECORDED = Path(__file__).parent.parent.parent / "assets" / "sensitivity.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help="demo, a hub id, or a folder")
    parser.add_argument("--method", default="rtn", help="one that rounds a layer at a time to a chosen width: rtn, hqq, gptq, awq or another")
    parser.add_argument("--bits", default="2,3,4,8", help="widths, separated by commas")
    parser.add_argument("--group-size", type=int, default=64, help="weights that share a scale")
    parser.add_argument("--symmetric", metavar="VALUE", help="true: the middle code is zero; false: the grid spans min to max; else as the method has it")
    parser.add_argument("--windows", type=int, default=4, help="windows of the calibration text that are scored")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--record", action="store_true", help=f"write it to assets/{RECORDED.name}; the page asks for --symmetric false")


def short(value: Any) -> Any:
    """Floats to six significant digits, in lists and dicts too."""
    if isinstance(value, dict):
        return {name: short(v) for name, v in value.items()}
    if isinstance(value, list):
        return [short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def params_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given and that the method has a parameter for."""
    from explorer.methods import fields_of, from_text, methods

    known = {field.name for field in fields_of(methods()[args.method])} if args.method in methods() else set()
    given = {name: value for name in ("group_size", "symmetric") if name in known and (value := getattr(args, name)) is not None}
    return given | from_text(args.method, {name: value for name, value in given.items() if isinstance(value, str)})


def work(args: argparse.Namespace) -> None:
    from explorer.commands.sweep import integers

    asked = {"model": args.model, "method": args.method, "params": params_of(args), "bits": integers(args.bits, "--bits"), "windows": args.windows}
    for event in runner_of(args.store).do("sensitivity", asked):
        show(event)
    assert isinstance(event, Answer)
    answer = short(plain(event.data | {"provenance": event.provenance}))
    if args.record:
        head = {name: value for name, value in answer.items() if name != "rows"}
        rows = ",\n".join(map(json.dumps, answer["rows"]))
        RECORDED.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + rows + "\n]}\n")
        print(f"wrote {RECORDED.name}: {len(answer['rows'])} rows", file=sys.stderr)
    elif args.json:
        print(document(answer))
    else:
        for row in answer["rows"]:
            kl = row["kld"]
            ends = "" if row["kld_low"] is None else f"  [{significant(row['kld_low'], kl)}, {significant(row['kld_high'], kl)}]"
            print(f"{row['layer']:32s} {row['bits']} bits  KL {significant(kl)} nats{ends}")


COMMAND = Command("sensitivity", "measure how much each layer costs at each width", arguments, work)
