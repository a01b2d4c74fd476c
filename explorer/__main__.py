"""The command line: `python -m explorer <command>`. Commands are files in explorer/commands; exit codes and Ctrl-C are handled here."""

from __future__ import annotations

import argparse
import errno
import os
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

from explorer.commands import UNSAVED, commands
from explorer.records import InputError
from explorer.sizes import out_of_memory
from explorer.store import place_from
from explorer.writing import NotWritten

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk or device that takes no more


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    codes = "Exit codes: 0 done; 2 bad input, or nothing that was asked for could run; 3 a result could not be kept or written; 130 Ctrl-C."
    top = argparse.ArgumentParser(prog="python -m explorer", description="Quantize a language model, run it, measure what changed.", epilog=codes)
    added = top.add_subparsers(dest="command", required=True)
    for command in commands().values():
        own = added.add_parser(command.name, help=command.help)
        command.arguments(own)
        if command.stores:
            own.add_argument("--store", type=Path, default=place_from(), help="result file; else QUANTIZATION_EXPLORER_STORE, or one in ~/.cache")
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 2 with a sentence on bad input; 3 where a result could not be kept or written; 130 on Ctrl-C with nothing half-stored; 141 where
    whoever read the output is gone.
    """
    UNSAVED.clear()
    try:
        try:
            args = parser().parse_args(argv)
        finally:
            sys.stdout.flush()  # of --help too, which ends here
        code = commands()[args.command].work(args) or 0
        sys.stdout.flush()
        if UNSAVED:
            print(f"{len(UNSAVED)} of the results could not be kept ({UNSAVED[0]}); what is printed is whole, but asked again it is measured again. "
                  "Free some space, or choose another --store.", file=sys.stderr)  # fmt: skip
        return code or 3 * bool(UNSAVED)
    except InputError as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, NotWritten) else 2
    except KeyboardInterrupt:
        print("cancelled; what was measured before is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        quiet()
        return 141  # what a shell says of a program that wrote to a closed pipe
    except sqlite3.Error as error:
        print(f"The result store could not be used ({error}); choose another --store, or try again.", file=sys.stderr)
        return 3
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print("The memory was not enough; what was measured before is kept. Choose a smaller model or less text.", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        quiet()
        print(f"{error.filename or 'The output'} could not be written ({error.strerror}); free some space, or choose another place.", file=sys.stderr)
        return 3


def quiet() -> None:
    """What still waits to be written goes nowhere: Python would try it again at its end, and complain."""
    with suppress(OSError, ValueError):  # no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
