"""`run`: one experiment. Flags derive from the methods' fields."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from explorer.commands import Command, document, runner_of, show, writable
from explorer.data import FILE_LIMIT
from explorer.findings import doubt, doubts, in_16_bits
from explorer.link import WHOLE
from explorer.records import InputError, Report
from explorer.vocabulary import term
from explorer.wide import layer_names, origin_of
from explorer.writing import write

OPTIONS = ("calibration", "sequences", "seed", "kv_bits", "head_bits", "tokens", "length")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_method(parser)
    add_circumstances(parser)
    add_seed(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--html", type=Path, help="also write one self-contained page with the figures, the 16-bit baseline beside it")


def add_circumstances(parser: argparse.ArgumentParser) -> None:
    """The texts, how much is scored and whether speeds are measured again: what one run and a sweep are both asked with, beside `add_widths`."""
    add_texts(parser)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of the evaluation text that are scored; 0 for all")
    parser.add_argument("--remeasure", action="store_true", help="measure speeds and sizes again and store them in place of those of this device")


def add_texts(parser: argparse.ArgumentParser) -> None:
    """The evaluation and the calibration text."""
    parser.add_argument("--evaluation", default=None, help="bundled, wikitext2, c4, or pasted with --text; bundled unless --text is given")
    parser.add_argument("--calibration", default="bundled", help="bundled, wikitext2, c4, or pasted with --text; for methods that need inputs")
    parser.add_argument("--sequences", type=int, default=16, help="windows of calibration text")
    parser.add_argument("--length", type=int, default=0, help="tokens a window, from 16; 0 for the model's own, up to 1,024 (WikiText-2: 2,048)")
    parser.add_argument("--text", type=Path, help="a UTF-8 text file of up to 16 MB to evaluate on, or to calibrate on with --calibration pasted")


def circumstances(args: argparse.Namespace, reads: bool = True) -> dict[str, Any]:
    """The options of a Request that `add_circumstances` (or `add_texts`), `add_widths` and --seed asked for. reads: whether anything that is asked for reads
    calibration text. Raises InputError for a text file that cannot be read, or that is asked for and not given, or the reverse.
    """
    pasted = args.calibration == "pasted"
    evaluation = args.evaluation or ("pasted" if args.text and not pasted else "bundled")
    if args.text and not (pasted and reads) and evaluation != "pasted":
        instead = "leave one of the two out, or add --calibration pasted"
        instead = instead if reads else "nothing that is asked for reads inputs, so leave --text out, or score it with --evaluation pasted"
        raise InputError(f"--text is neither scored with --evaluation {evaluation} nor calibrated on; {instead}.")
    if not args.text and (pasted or evaluation == "pasted"):
        raise InputError("pasted means the text of a file; give it with --text FILE, or choose another text.")
    text = text_in(args.text) if args.text else ""
    return {name: value for name, value in vars(args).items() if name in OPTIONS} | {"evaluation": evaluation, "text": text, "text_limit": FILE_LIMIT}


def text_in(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError for one that is too large, holds nothing or cannot be read."""
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise InputError(f"The text file {path} has {path.stat().st_size / 1e6:,.0f} MB; give one of at most {FILE_LIMIT / 1e6:.0f} MB.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The text file {path} cannot be read; give a UTF-8 text file.") from error
    if not text.strip():
        raise InputError(f"The text file {path} holds no text; give another.")
    return text


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The draw of calibration text; a sweep takes several."""
    parser.add_argument("--seed", type=int, default=0, help="which windows of the calibration text; 0 for the first ones")


def add_method(parser: argparse.ArgumentParser) -> None:
    """The model, the method, and its parameters as flags; a flag that two methods share is one flag."""
    from explorer.methods import methods

    parser.add_argument("--model", default="demo", help="demo, a hub id, a folder, or arch:<name> for random weights of a known architecture")
    parser.add_argument("--method", default="rtn", help=", ".join(methods()))
    add_widths(parser)
    for name, words in every_field().items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, metavar="VALUE", help=words)


def add_widths(parser: argparse.ArgumentParser) -> None:
    """The bits of cache and head."""
    parser.add_argument("--kv-bits", type=int, default=16, help="bits of the KV cache: 16, 8, 4 or 2 (KIVI's layout; window 32 here, 128 in the paper)")
    parser.add_argument("--head-bits", type=int, default=16, help="bits of the output head: 16, 8 or 4; the embedding stays in 16")


def every_field() -> dict[str, str]:
    """The parameters of all methods by name, with their help: the first method's where several have one."""
    from explorer.methods import fields_of, methods

    found: dict[str, str] = {}
    for method in methods().values():
        for field in fields_of(method):
            found.setdefault(field.name, f"{field.title}: {field.help}")
    return found


def parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as the types that the method's fields ask for. Raises InputError, also for one that would have no effect."""
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
    found = from_text(args.method, given)
    idle(args.method, found)
    return found


def idle(name: str, given: dict[str, Any]) -> None:
    """Raises InputError where a parameter was given that others switch off, or one that cannot be; one that is off itself may be said."""
    from explorer.methods import build, fields_of

    method = build(name, given)
    for field in fields_of(type(method)):
        if field.when and given.get(field.name, False) is not False and (other := getattr(method, field.when[0])) not in field.when[1]:
            flag, switch = (part.replace("_", "-") for part in (field.name, field.when[0]))
            use = " or ".join(f"--{switch} {str(value).lower()}" for value in field.when[1])
            raise InputError(f"{name} does not use --{flag} with {switch} {str(other).lower()}; leave it out, or give {use}.")


def reads(method: str, params: dict[str, Any]) -> bool:
    """Whether a configuration reads calibration text. Raises InputError for one that cannot be."""
    from explorer.methods import build

    return build(method, params).reads_inputs()


def table(report: Report) -> str:
    """The whole-model numbers of a report as text, one a line."""
    rows = [f"{report.name} on {report.experiment.model.name} ({report.provenance['device']})"]
    for m in report.measurements:
        if not m.layer and not isinstance(m.value, list | dict):
            value = f"{m.value:,.6g}" if isinstance(m.value, float | int) else str(m.value)
            interval = f"  [{m.low:,.5g}, {m.high:,.5g}]" if m.low is not None else ""
            within = " within this run" if interval and term(m.metric).ratio else ""
            notes = [f"{m.bad} not finite" if m.bad else "", "disturbed: see speed below" if doubt(report, m.metric) else ""]
            rows.append(", ".join([f"{m.metric:28s} {value} {m.unit}{interval}{within}  {m.how}", *filter(None, notes)]))
    ran = ", ".join(filter(None, (report.provenance["kernel_summary"], report.provenance.get("kernel_turns"))))
    rows += [f"{'kernel':28s} {ran}", f"{'calibration':28s} {report.provenance['calibration']}"]
    rows += [f"{'speed':28s} {told} (--remeasure measures again)" for told in doubts(report)]
    rows += [f"{'head':28s} {told}"] if (told := report.provenance.get("untied")) else []
    rows += [f"{'baseline':28s} {told}"] if (told := report.provenance.get("stored")) else []
    rows += [f"{'kept':28s} {line}" for line in in_16_bits(report)]
    return "\n".join([*rows, *(f"{f'origin of {family}':28s} {origin_of(report, family)}" for family in ("quality", "speed"))])


def page_of(reports: list[Report]) -> str:
    """Reports as one self-contained page. Raises InputError where plotly is not installed."""
    from explorer.report_page import report_page

    layers = layer_names(reports)
    try:
        return report_page(reports, layers[len(layers) // 2] if layers else "")
    except ImportError as error:
        raise InputError("A page of figures needs the package plotly; install it, or leave --html out.") from error


def work(args: argparse.Namespace) -> None:
    given = parameters(args)
    options = circumstances(args, reads(args.method, given)) | {"again": args.remeasure}
    if args.html:
        writable(args.html)
    from explorer.experiment import last_report
    from explorer.export import noted

    runner = runner_of(args.store)
    report = last_report(runner.run(args.model, args.method, given, **options), show)
    print(document(noted(report)) if args.json else table(report), flush=True)
    if args.html:
        base = [] if report.experiment.spec.is_baseline else [last_report(runner.run(args.model, "none", {}, **options | WHOLE), show)]
        write(args.html, page_of([*base, report]))


COMMAND = Command("run", "run one experiment", arguments, work)
