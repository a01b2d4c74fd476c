"""The command line: `python -m explorer run|methods|seed|survey|reproduce`. Flags derive from the methods' fields; JSON on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from explorer.records import Event, InputError, Progress, Report, plain

SEEDS = Path(__file__).parent.parent / "assets" / "seed_results.json"
SEED_SPECS = (
    ("none", {}),
    ("rtn", {"bits": 8, "granularity": "channel"}),
    ("rtn", {"bits": 4, "granularity": "group", "group_size": 64}),
    ("gptq", {"bits": 4, "granularity": "group", "group_size": 64}),
    ("rtn", {"bits": 2, "granularity": "group", "group_size": 64}),
)
SURVEY = SEEDS.with_name("survey.json")
# Beside every method with its defaults: three bits, where methods part, and the variants people ask about.
SURVEY_SPECS = (
    *((method, {"bits": 3}) for method in ("rtn", "hqq", "awq", "gptq", "qat")), ("rtn", {"bits": 3, "rotate": True}), ("gptq", {"bits": 3, "rotate": True}),
    *((method, {"bits": 2}) for method in ("rtn", "hqq", "awq", "gptq")), ("quip", {"rotate": False}), ("quip", {"feedback": False}),
    *((method, {"bits": bits, "symmetric": False}) for method in ("rtn", "gptq") for bits in (2, 3, 4)),
    ("gptq", {"bits": 2, "symmetric": False, "rotate": True}), ("nf4", {"double_quant": True}),
    ("mxfp", {"element": "e3m2"}), ("mxfp", {"element": "e4m3"}), ("dynamic_int8", {"granularity": "tensor", "activation": "tensor"}),
    ("smoothquant", {"activation": "static"}), ("fp8", {"element": "e5m2"}),
)  # fmt: skip
SURVEYED = ("bits_per_weight", "perplexity", "perplexity_delta", "kld_mean", "top1_agreement", "quantize_seconds", "decode_tokens_per_second")


def store_path() -> Path:
    """Where results are kept unless --store names another place."""
    return Path.home() / ".cache" / "quantization-explorer" / "results.db"


def parser() -> argparse.ArgumentParser:
    """The whole command line. A method's parameters are added as flags; a flag that two methods share is one flag."""
    from explorer.methods import fields_of, methods

    top = argparse.ArgumentParser(prog="python -m explorer", description="Quantize a language model, run it, measure what changed.")
    commands = top.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("methods", help="list the methods and their parameters")
    listing.add_argument("--json", action="store_true")
    seed = commands.add_parser("seed", help="measure the results that the page shows first and write them to assets/")
    survey = commands.add_parser("survey", help="measure every method on the bundled model and write the README's table to assets/")
    again = commands.add_parser("reproduce", help="repeat published WikiText-2 results on the models that can be reached")
    again.add_argument("--model", default="", help="only rows of models whose name contains this")
    again.add_argument("--folder", type=Path, help="a folder that holds this model, for models that the hub has in no safe format")
    again.add_argument("--json", action="store_true", help="print one JSON document")
    run = commands.add_parser("run", help="run one experiment")
    run.add_argument("--model", default="demo", help="demo, a hub id, or a folder")
    run.add_argument("--method", default="rtn", help=", ".join(methods()))
    run.add_argument("--evaluation", default="bundled", help="bundled, wikitext2, c4, or pasted with --text")
    run.add_argument("--calibration", default="bundled", help="bundled, wikitext2, c4, or pasted with --text; for methods that need inputs")
    run.add_argument("--sequences", type=int, default=16, help="windows of calibration text")
    run.add_argument("--seed", type=int, default=0, help="which windows of the calibration text; 0 for the first ones")
    run.add_argument("--tokens", type=int, default=8192, help="tokens of the evaluation text that are scored; 0 for all")
    run.add_argument("--length", type=int, default=0, help="tokens a window; 0 for the model's own, up to 1,024 (WikiText-2: 2,048)")
    run.add_argument("--kv-bits", type=int, default=16, help="bits of the KV cache: 16, 8, 4 or 2 (KIVI)")
    run.add_argument("--text", type=Path, help="a text file to evaluate on, or to calibrate on with --calibration pasted")
    run.add_argument("--json", action="store_true", help="print one JSON document")
    for each in (run, seed, survey, again):
        each.add_argument("--store", type=Path, default=store_path(), help="result file")
    added: set[str] = set()
    for method in methods().values():
        for field in fields_of(method):
            if field.name not in added:
                added.add(field.name)
                run.add_argument(f"--{field.name.replace('_', '-')}", default=None, metavar="VALUE", help=f"{field.title}: {field.help}")
    return top


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as the types that the method's fields ask for. Raises InputError."""
    from explorer.methods import fields_of, from_text, methods

    known = methods()
    if args.method not in known:
        raise InputError(f"There is no method {args.method[:40]!r}; choose one of {', '.join(known)}.")
    own = {field.name for field in fields_of(known[args.method])}
    every = {field.name for method in known.values() for field in fields_of(method)}
    given = {name: value for name in every if (value := getattr(args, name)) is not None}
    for name in given:
        if name not in own:
            raise InputError(f"{args.method} has no parameter {name!r}; it takes {', '.join(own) or 'none'}.")
    return from_text(args.method, given)


def show(event: Event) -> None:
    """Progress to stderr."""
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.done}/{event.total} {event.detail}", file=sys.stderr)


def table(report: Report) -> str:
    """The whole-model numbers of a report as text, one a line."""
    rows = [f"{report.name} on {report.experiment.model.name} ({report.provenance['device']})"]
    for m in report.measurements:
        if not m.layer and not isinstance(m.value, list | dict):
            value = f"{m.value:,.6g}" if isinstance(m.value, float | int) else str(m.value)
            interval = f"  [{m.low:,.5g}, {m.high:,.5g}]" if m.low is not None else ""
            rows.append(f"{m.metric:28s} {value} {m.unit}{interval}  {m.how}" + (f", {m.bad} not finite" if m.bad else ""))
    return "\n".join([*rows, f"{'kernel':28s} {report.provenance['kernel_summary']}"])


def command_methods(args: argparse.Namespace) -> None:
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


def command_run(args: argparse.Namespace) -> None:
    given = parameters(args)
    text = ""
    if args.text:
        try:
            text = args.text.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The text file {args.text} cannot be read; give a UTF-8 text file.") from error
    from explorer.experiment import LocalRunner, last_report
    from explorer.store import Store

    runner = LocalRunner(Store(args.store))
    evaluation = "pasted" if args.text and args.calibration != "pasted" else args.evaluation
    options = {name: getattr(args, name) for name in ("calibration", "sequences", "seed", "kv_bits", "tokens", "length")}
    report = last_report(runner.run(args.model, args.method, given, evaluation=evaluation, text=text, **options), show)
    print(json.dumps(plain(report)) if args.json else table(report))


def command_seed(args: argparse.Namespace) -> None:
    from explorer.experiment import LocalRunner, last_report
    from explorer.store import Store

    runner = LocalRunner(Store(args.store))
    reports = [last_report(runner.run("demo", method, params), show) for method, params in SEED_SPECS]
    # The activations are the 16-bit model's, the same for all: one copy is enough to draw them.
    shared = {m.metric for m in reports[0].measurements if m.metric.startswith("activation") or m.metric == "outlier_channels"}
    reports[1:] = [dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric not in shared)) for r in reports[1:]]
    SEEDS.write_text("[\n" + ",\n".join(json.dumps(plain(report)) for report in reports) + "\n]\n")
    print(f"wrote {SEEDS.name}: {len(reports)} reports", file=sys.stderr)


def command_survey(args: argparse.Namespace) -> None:
    from explorer.experiment import LocalRunner, last_report
    from explorer.methods import methods
    from explorer.store import Store

    runner = LocalRunner(Store(args.store))
    reports = [last_report(runner.run("demo", method, params), show) for method, params in (*((name, {}) for name in methods()), *SURVEY_SPECS)]
    reports = [dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric in SURVEYED)) for r in reports]
    rows = [plain(report) for report in reports]
    for row in rows:
        row["provenance"] = {name: row["provenance"].get(name) for name in ("label", "device", "torch", "date", "kernel_summary", "text")}
    SURVEY.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"wrote {SURVEY.name}: {len(reports)} reports", file=sys.stderr)


def command_reproduce(args: argparse.Namespace) -> int:
    """Exit code 1 when a row that ran is not within its tolerance."""
    from explorer.experiment import LocalRunner
    from explorer.reproduce import PUBLISHED, reproduce
    from explorer.store import Store

    rows = tuple(row for row in PUBLISHED if args.model.lower() in row.model.lower())
    if not rows:
        raise InputError(f"No published row is of a model named {args.model[:40]!r}; models are {', '.join(dict.fromkeys(r.model for r in PUBLISHED))}.")
    if args.folder:
        if len({row.model for row in rows}) > 1:
            raise InputError("One folder holds one model; say which with --model.")
        rows = tuple(dataclasses.replace(row, model=str(args.folder)) for row in rows)
    outcomes = []
    for outcome in reproduce(LocalRunner(Store(args.store)), rows, show):
        outcomes.append(outcome)
        if not args.json:
            verdict = {True: "agrees", False: "DIFFERS", None: "not run"}[outcome.agrees]
            ours = f"{outcome.found:.2f} [{outcome.low:.2f}, {outcome.high:.2f}]" if outcome.found is not None else outcome.why_not
            print(f"{verdict:8s} {outcome.row.title()}: published {outcome.row.perplexity} (within {outcome.row.tolerance:.1%}), here {ours}", flush=True)
    if args.json:
        print(json.dumps({"rows": [plain(outcome) | {"agrees": outcome.agrees} for outcome in outcomes]}, indent=1))
    else:
        count = sum(outcome.found is not None for outcome in outcomes)
        print(f"{count} of {len(outcomes)} rows could be run, {sum(outcome.agrees is True for outcome in outcomes)} agree")
    return int(any(outcome.agrees is False for outcome in outcomes))


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 2 with a sentence on bad input; 130 on Ctrl-C with nothing half-stored."""
    try:
        args = parser().parse_args(argv)
        commands = {"run": command_run, "methods": command_methods, "seed": command_seed, "survey": command_survey, "reproduce": command_reproduce}
        return commands[args.command](args) or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cancelled; what was measured before is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
