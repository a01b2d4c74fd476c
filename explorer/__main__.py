"""The command line: `python -m explorer <command>`. Commands are files in explorer/commands; exit codes and Ctrl-C are handled here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from explorer.commands import commands, store_path
from explorer.records import InputError


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="python -m explorer", description="Quantize a language model, run it, measure what changed.")
    added = top.add_subparsers(dest="command", required=True)
    for command in commands().values():
        own = added.add_parser(command.name, help=command.help)
        command.arguments(own)
        if command.stores:
            own.add_argument("--store", type=Path, default=store_path(), help="result file")
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 2 with a sentence on bad input; 130 on Ctrl-C with nothing half-stored."""
    try:
        args = parser().parse_args(argv)
        return commands()[args.command].work(args) or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cancelled; what was measured before is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
