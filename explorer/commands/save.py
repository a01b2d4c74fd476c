"""`save`: a quantized model as a checkpoint that loads elsewhere, with a card that says how it was made and what was measured on it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from explorer.commands import Command, show, shown
from explorer.commands.run import add_method, parameters
from explorer.records import InputError, Report, plain

SHOWN = {
    "bits_per_weight": "bits per weight, as stored",
    "perplexity": "perplexity",
    "perplexity_delta": "change in perplexity, paired",
    "kld_mean": "KL divergence to 16 bits",
    "top1_agreement": "same top token as 16 bits",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    parser.add_argument("--calibration", default="bundled", help="bundled, wikitext2 or c4; for methods that need inputs")
    parser.add_argument("--sequences", type=int, default=16, help="windows of calibration text")
    parser.add_argument("--seed", type=int, default=0, help="which windows of the calibration text; 0 for the first ones")
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--as",
        dest="form",
        metavar="FORMAT",
        default="auto",
        help="auto (the first that holds the codes exactly), compressed-tensors, bitsandbytes, or bfloat16",
    )
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help="measure the model first, for its card")


def card(report: Report | None, title: str, model: str, made: dict[str, str], how: str) -> str:
    """README.md of a checkpoint. made: "format", "loads", and "note" with what the format cannot hold."""
    return f"""# {title} of {model}

Made by the Quantization Explorer: `{how}`

Format: {made["format"]}. It loads with {made["loads"]}. {made["note"]}

{numbers(report) if report else "Not measured."}

`quantization_explorer.json` holds the experiment, every measurement with its interval, and the versions and device that gave them.
"""


def numbers(report: Report) -> str:
    """The main measurements as a table."""
    rows = ["| measured | value | 95% interval |", "|---|---|---|"]
    for m in report.measurements:
        if m.metric in SHOWN and not m.layer:
            interval = f"{m.low:.4g} to {m.high:.4g}" if m.low is not None else ""
            rows.append(f"| {SHOWN[m.metric]} | {m.value:.5g} {m.unit} | {interval} |")
    return "\n".join([*rows, "", f"On {report.experiment.evaluation.source} text, {report.provenance['device']}, with the explorer's own kernels."])


def work(args: argparse.Namespace) -> None:
    given = parameters(args)
    from explorer.experiment import Loader, LocalRunner, last_report
    from explorer.provenance import name_of
    from explorer.request import Request
    from explorer.saving import choose, save, why_not_exact
    from explorer.store import Store
    from explorer.subjects import subject_of

    if args.kv_bits != 16 or args.head_bits != 16:
        raise InputError("A cache in low bits is a choice of the program that runs a model, and no format here holds a head in low bits; leave both at 16.")
    options = {name: getattr(args, name) for name in ("calibration", "sequences", "seed")}
    load, report = Loader(), None
    experiment, method, texts = Request(args.model, args.method, given, **options).prepare()
    if args.measure:
        report = last_report(LocalRunner(Store(args.store), load).run(args.model, args.method, given, **options), show)
    subject = shown(subject_of(load, experiment, method, texts))
    form = choose(subject.qtensors, args.form)
    reasons = "; ".join(f"{title} cannot hold it, {why}" for title, why in why_not_exact(subject.qtensors).items())
    note = "" if form.exact else f"It has the quality of the quantized model and the size of the original: {reasons}."
    made = {"format": form.title, "loads": form.loads, "note": note}
    how = shlex.join(["python", "-m", "explorer", *sys.argv[1:]])
    text = card(report, name_of(experiment.spec, method), experiment.model.name, made, how)
    written = save(subject, form, args.to, text, plain(report or {"experiment": experiment}))
    print(json.dumps({"folder": str(args.to), **written, "loads": form.loads, "note": note}, indent=1))


COMMAND = Command("save", "write a quantized model as a checkpoint that loads elsewhere", arguments, work)
