"""`methods`: lists the methods and their parameters."""

from __future__ import annotations

import argparse
import json

from explorer.commands import Command


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def work(args: argparse.Namespace) -> None:
    from explorer.methods import catalogue

    rows = catalogue()
    if args.json:
        print(json.dumps({"methods": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['name']:8s} {row['title']}")
        for field in row["fields"]:
            allowed = ", ".join(map(str, field["choices"])) or (f"{field['low']:g} to {field['high']:g}" if field["low"] is not None else "text")
            print(f"    --{field['name'].replace('_', '-'):16s} {allowed}  (default {field['default']})")


COMMAND = Command("methods", "list the methods and their parameters", arguments, work, stores=False)
