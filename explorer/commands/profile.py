"""`profile`: where the time of a token goes, as a trace for Perfetto with ranges named by layer and operation, and the line that profiles a GPU."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from explorer.commands import Command, loader, shown, tidied, writable
from explorer.commands.run import add_method, parameters


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    parser.add_argument("--new", type=int, default=8, help="tokens that are profiled")
    parser.add_argument("--context", type=int, default=32, help="tokens of the prompt, at most a window of text: the model's own length, up to 1,024")
    parser.add_argument("--output", type=Path, default=Path("profile.json"), help="where the trace is written")


def work(args: argparse.Namespace) -> None:
    from explorer.profiling import profile
    from explorer.records import InputError
    from explorer.request import Request

    if not (1 <= args.new <= 1000 and 1 <= args.context <= 1024):
        raise InputError("Give 1 to 1,000 new tokens and a context of 1 to 1,024 tokens.")
    if not os.path.isdir(args.output.parent):
        raise InputError(f"There is no folder {str(args.output.parent)!r} to write the trace in.")
    if os.path.exists(args.output) and not os.path.isfile(args.output):  # which have no opinion of a name that is too long
        raise InputError(f"{args.output} is there and no file, and a trace takes the place of what is there; choose another one.")
    tidied(args.output)
    writable(args.output)
    request = Request(args.model, args.method, parameters(args), kv_bits=args.kv_bits, head_bits=args.head_bits)
    print(shown(profile(request, loader(), args.context, args.new, args.output)))


COMMAND = Command("profile", "trace a few decoded tokens, with ranges named by layer and operation", arguments, work, stores=False)
