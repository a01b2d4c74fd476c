"""`save`: a quantized model as a checkpoint that loads elsewhere, with a card that says how it was made and what was measured on it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from explorer.commands import Command, loader, runner_of, show, shown, tidied
from explorer.commands.run import add_circumstances, add_method, add_seed, circumstances, parameters, reads
from explorer.records import InputError, plain


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    add_circumstances(parser)
    add_seed(parser)
    parser.add_argument("--to", type=Path, required=True, help="a new folder, or one that is there and empty; it is whole or not there")
    forms = "auto (the first that holds the codes exactly), compressed-tensors, bitsandbytes, gguf, or bfloat16"
    parser.add_argument("--as", dest="form", metavar="FORMAT", default="auto", help=forms)
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help="measure the model first, for its card")


def work(args: argparse.Namespace) -> None:
    given = parameters(args)
    from explorer import models
    from explorer.experiment import last_report
    from explorer.provenance import name_of
    from explorer.request import Request
    from explorer.saving import Prepared, card, check, choose, loads, note, save, written_bits
    from explorer.saving.beforehand import check_asked
    from explorer.subjects import subject_of

    if args.kv_bits != 16 or args.head_bits != 16:
        raise InputError("A cache in low bits is a choice of the program that runs a model, and no format here holds a head in low bits; leave both at 16.")
    tidied(args.to)
    check(args.to, args.form)
    options = circumstances(args, reads(args.method, given))
    load, report = loader(), None
    load.held.limit = 1 << 62  # what is measured is what is written: quantized once, however large
    experiment, method, texts = Request(args.model, args.method, given, **options).prepare(load.hub)
    check_asked(experiment, method, models.configuration(experiment.model, load.hub), args.form)
    if args.measure:
        report = last_report(runner_of(args.store, load).run(args.model, args.method, given, again=args.remeasure, **options), show)
    made = Prepared.of(shown(subject_of(load, experiment, method, texts)))
    form = choose(made, args.form)
    said = (args.to.name if word == str(args.to) else word for word in sys.argv[1:])
    words = card(
        form,
        made,
        name_of(experiment.spec, method),
        shlex.join(["python", "-m", "explorer", *said]),
        report,
    )
    written = save(made, form, args.to, words, plain(report or {"experiment": experiment}))
    told = {"bits_per_weight": written_bits(form, made), "loads": loads(form, made), "note": note(form, made)}
    print(json.dumps({"folder": str(args.to), **written, **told}, indent=1))


COMMAND = Command("save", "write a quantized model as a checkpoint that loads elsewhere", arguments, work)
