"""Reports to take away: all numbers as CSV or JSON, and the commands that repeat them. Knows records; `report_page` makes the page of them."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from explorer.findings import awaited, dated, doubt, doubts, origin
from explorer.link import unusual
from explorer.low_bit_files import in_gguf
from explorer.records import Experiment, Measurement, Report, Scalar, plain
from explorer.version import version, written_by
from explorer.vocabulary import FAMILY, WINDOWS, term

ALL = 10**9  # tokens that mean the whole text
DEMO, METHOD, TOKENS, DEMO_LENGTH = "demo", "rtn", 8192, 512  # of `run` without flags
COMMIT = re.compile("[0-9a-f]{40}")  # of a model of the hub; a folder's revision is a shorter hash of its content
ASSETS = Path(__file__).parent.parent / "assets"
METHODS = ASSETS / "methods.json"
COPY = "<button type='button' class='act' data-copy>Copy</button>"
USUAL = "all defaults: RTN, 4 bits, groups of 64"  # beside a command without a flag
SHORT = "In a checkout of the project, version VERSION: what is at its default is left out. Report, CSV and JSON have the commands in full, to be kept."
WHOLE = "In a checkout of the project; this was written by version VERSION. Defaults are spelled out, because another version may have others."
OWN = "TEXT.txt stands for a file with your own text, whose SHA-256 begins with DIGEST."
HELD = (
    "The files of a checkpoint hold codes in the widths of their format, 2 and 3 bits often as 4, and 16-bit weights where no format holds the codes exactly; "
    "the card in it says how many bits that is, and why."
)
COLUMNS = ("configuration", "model", "revision", "metric", "layer", "value", "words", "unit", "low", "high", "interval", "windows", "n", "not_finite", "how",
           "note", "origin", "device", "date", "kernel", "method", "params", "kv_bits", "head_bits", "text", "calibration", "seed", "torch", "transformers",
           "written_by", "command")  # fmt: skip


def command_of(report: Report, whole: bool = False) -> str:
    """The command that repeats a report's experiment; flags at their defaults are left out. whole: none is, and a model of the hub is named by its commit,
    so that the command means the same where defaults or the model have changed.
    """
    told, spec = _circumstances(report), report.experiment.spec
    told = {"kv-bits": (spec.kv_bits, 16), "head-bits": (spec.head_bits, 16), **told}
    return shlex.join([*_words("run", report, whole), *_flags(told, whole), *_own_text(told)])


def saving_of(report: Report, form: str = "auto", whole: bool = False) -> str:
    """The command that writes a report's quantized model as a checkpoint in a format of `save --as`; empty where there is none to write. whole: as in
    `command_of`, also of what is measured for its card.
    """
    experiment, told = report.experiment, _circumstances(report)
    if experiment.model.random or experiment.spec.method == "none" or told.get("calibration", ("",))[0] == "pasted":
        return ""
    flags = _flags(told, whole) if whole else _flags({**_read(report), "length": told["length"]} if reads(report) else {})
    return shlex.join(
        [*_words("save", report, whole), *flags, *(_own_text(told) if whole else ()), *(["--as", form] if form != "auto" else []), "--to", "my-model"]
    )


def reads(report: Report) -> bool:
    """Whether its method read calibration text: without, which one was chosen is no part of it."""
    return report.experiment.spec.method != "none" and bool(report.provenance.get("reads_inputs", True))


def _circumstances(report: Report) -> dict[str, tuple[Scalar, Scalar]]:
    """Flags by name, their value and what is in force without them, of the texts that a report is over."""
    evaluation = report.experiment.evaluation
    return {
        "evaluation": (evaluation.source, "bundled"), **_read(report),
        "length": (evaluation.length, usual_length(report.experiment)), "tokens": (evaluation.tokens if evaluation.tokens < ALL else 0, TOKENS),
    }  # fmt: skip


def _read(report: Report) -> dict[str, tuple[Scalar, Scalar]]:
    calibration = report.experiment.calibration
    windows = calibration.tokens // calibration.length
    return {"calibration": (calibration.source, "bundled"), "sequences": (windows, 16), "seed": (calibration.seed, 0)} if reads(report) else {}


def _own_text(told: Mapping[str, tuple[Scalar, Scalar]]) -> list[str]:
    return ["--text", "TEXT.txt"] if "pasted" in (told["evaluation"][0], told.get("calibration", ("",))[0]) else []


def _flags(told: Mapping[str, tuple[Scalar, Scalar]], whole: bool = False) -> list[str]:
    """Flags as words, by name their value and what is in force without them."""
    return [word for name, (value, usual) in told.items() if whole or value != usual for word in (f"--{name}", str(value))]


def usual_length(experiment: Experiment) -> int:
    """The tokens of a window without --length: the model's own, up to what a text is cut into; no window is longer than its model's own."""
    return DEMO_LENGTH if experiment.model.name == DEMO else 2048 if experiment.evaluation.source == "wikitext2" else 1024


@cache
def catalogue() -> list[dict[str, Any]]:
    """The methods and their fields, as the page has them."""
    return json.loads(METHODS.read_text())["methods"]


def _words(command: str, report: Report, whole: bool = False) -> list[str]:
    """A command of the explorer up to the method's parameters; what is at its default is left out unless the whole is wanted."""
    model, spec = report.experiment.model, report.experiment.spec
    name = f"{model.name}@{model.revision}" if whole and COMMIT.fullmatch(model.revision) else model.name
    params = spec.params if whole else unusual(spec, catalogue())
    words = ["python", "-m", "explorer", command, *_flags({"model": (name, DEMO), "method": (spec.method, METHOD)}, whole)]
    return words + [word for field, value in params for word in (f"--{field.replace('_', '-')}", str(value).replace("\n", "; "))]


def as_csv(reports: Sequence[Report]) -> str:
    """One row a number, those of the whole model first; histograms and other arrays stay out, the JSON has them. value: a number; words: what is none, such
    as the sample text. interval: what low and high are; windows: how many of the evaluation text it is over; n: how many tokens, weights or runs were
    averaged; note: why nothing is concluded from the number; origin: as in `findings`, of a report that is not whole what it lacks; date: of this number;
    seed: of the calibration text, where one was read; command: what repeats the configuration.
    """
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    about = {id(report): _about(report) for report in reports}
    for of_layers in (False, True):
        for report in reports:
            model, p = report.experiment.model, report.provenance
            for m in report.measurements:
                if not isinstance(m.value, list | dict) and bool(m.layer) == of_layers:
                    value = ("", m.value) if isinstance(m.value, str) else (m.value, "")
                    found = (m.metric, m.layer, *value, m.unit, m.low, m.high, *interval(m, report), m.n, m.bad, m.how, doubt(report, m.metric))
                    told = f"incomplete, {rest}" if (rest := awaited(report)) else origin(p, FAMILY.get(m.metric, "")) or origin(p)
                    where = (told, p.get("device", ""), dated(report, m.metric))
                    rows.writerow(map(harmless, (report.name, model.name, model.revision, *found, *where, *about[id(report)])))
    return out.getvalue()


def _about(report: Report) -> tuple[object, ...]:
    """The columns that all rows of a report share, from its kernels on."""
    spec, p = report.experiment.spec, report.provenance
    params, seed = " ".join(f"{name}={value}" for name, value in spec.params), report.experiment.calibration.seed if p.get("calibration_tokens") else ""
    asked = (spec.method, params, spec.kv_bits, spec.head_bits, p.get("text", ""), p.get("calibration", ""), seed)
    return (p.get("kernel_summary", ""), *asked, p.get("torch", ""), p.get("transformers", ""), written_by(), command_of(report, whole=True))


def interval(found: Measurement, report: Report) -> tuple[str, int | str]:
    """What a measurement's low and high are, and over how many windows; "" for what it has not. Each token but a window's first is scored."""
    if found.low is None:
        return "", ""
    bounds = term(found.metric).bounds or WINDOWS
    return bounds.column, (found.n + found.bad) // (report.experiment.evaluation.length - 1) if bounds is WINDOWS else ""


def harmless(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def as_json(reports: Sequence[Report]) -> str:
    """The reports as `python -m explorer run --json` prints them, in a list, each with the command that repeats it."""
    return json.dumps([noted(report) | {"command": command_of(report, whole=True)} for report in reports], indent=1)


def noted(report: Report) -> dict[str, Any]:
    """A report as JSON-ready data; in "notes" why nothing is concluded from some of its numbers, in "intervals" by metric what low and high are, and what
    wrote it.
    """
    bounds = {m.metric: term(m.metric).bounds.column for m in report.measurements if m.low is not None and term(m.metric).bounds}
    return plain(report) | {"notes": doubts(report), "intervals": bounds, "written_by": written_by()}


def commands(reports: Sequence[Report], live: bool = False) -> str:
    """What repeats each report on the command line, and what writes its model as a checkpoint that loads elsewhere, as HTML, short where it is live: on a
    page that can make the checkpoint itself, by a button. Elsewhere, where it is kept, with every default spelled out.
    """
    return intro(live) + "".join(section(r, live) for r in reports) + held(reports)


def intro(live: bool) -> str:
    """Where the commands run, as HTML, and what the defaults are to them."""
    return f"<p class='see'>{SHORT if live else WHOLE}</p>".replace("VERSION", version())


def section(report: Report, live: bool = False) -> str:
    """The part of `commands` of one report."""
    command = command_of(report, not live)
    usual = f" <small>{USUAL}</small>" if command == "python -m explorer run" else ""
    own = f"<p><small>{OWN}</small></p>".replace("DIGEST", own_digest(report)) if "TEXT.txt" in command else ""
    return f"<section><h3>{escape(report.name)} {COPY}{usual}</h3>{_line(command)}{own}{_saving(report, live)}</section>"


def _line(command: str) -> str:
    """A command as HTML that breaks at no hyphen of a flag."""
    return f"<pre tabindex='0'>{re.sub('--[a-z-]+', lambda flag: f'<span class=flag>{flag[0]}</span>', escape(command))}</pre>"


def own_digest(report: Report) -> str:
    """The hash of the visitor's own text that a report is over."""
    texts = (report.experiment.evaluation, report.experiment.calibration)
    return next((text.digest for text in texts if text.source == "pasted"), "")


def held(reports: Sequence[Report]) -> str:
    """What the files of a checkpoint hold, as HTML; "" where none of the reports can be written."""
    return f"<p><small>{HELD}</small></p>" if any(map(saving_of, reports)) else ""


def _saving(report: Report, live: bool) -> str:
    line = saving_of(report, whole=not live)
    if not line:
        return ""
    spec = report.experiment.spec
    fits = in_gguf(spec.method, dict(spec.params), catalogue())
    picks = [(f"save:{report.key}", "download it"), *[(f"save:gguf-{report.key}", "as GGUF, for llama.cpp")] * fits] if live else ()
    buttons = " ".join(f"<button type='button' class='act' data-pick='{pick}'>{words}</button>" for pick, words in picks)
    return f"<p>As a checkpoint that loads elsewhere: {COPY} {buttons}</p>{_line(line)}"
