"""`choices`: multiple choice on the evaluation text, the accuracy of both models and the answers that quantizing changed."""

from __future__ import annotations

import argparse

from explorer.commands import Command, document, runner_of, show
from explorer.commands.run import add_method, add_seed, add_texts, circumstances, parameters, reads


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    add_texts(parser)
    add_seed(parser)
    parser.add_argument("--count", type=int, default=384, help="questions")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def work(args: argparse.Namespace) -> None:
    from explorer.figures.choices import summary
    from explorer.records import Answer

    given = parameters(args)
    options = circumstances(args, reads(args.method, given))
    asked = {"model": args.model, "method": args.method, "params": given, "options": options, "count": args.count}
    for event in runner_of(args.store).do("choices", asked):
        show(event)
    assert isinstance(event, Answer)
    told = f"{summary({'rows': [event.data]}).replace('**', '')} Text: {options['evaluation']}."
    print(document(event.data | {"provenance": event.provenance}) if args.json else told)


COMMAND = Command("choices", "which of four continuations is the true one: accuracy, and the answers that quantizing changed", arguments, work)
