"""Reports to take away: all numbers as CSV or JSON, and one self-contained HTML page with figures, provenance and the commands that repeat it.

Knows records and figures; plotly only gives its script, so that the page needs no network.
"""

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

from explorer.chips import legend, of_metrics
from explorer.figures import figures
from explorer.findings import awaited, doubt, doubts, origin
from explorer.gaps import absent
from explorer.link import unusual
from explorer.low_bit_files import in_gguf
from explorer.records import Experiment, Measurement, Report, Scalar, TextRef, plain
from explorer.table import comparison
from explorer.verdict import judged
from explorer.vocabulary import WINDOWS, term

ALL = 10**9  # tokens that mean the whole text
DEMO, METHOD, TOKENS, DEMO_LENGTH = "demo", "rtn", 8192, 512  # of `run` without flags
ASSETS = Path(__file__).parent.parent / "assets"
METHODS = ASSETS / "methods.json"
COPY = "<button type='button' class='act' data-copy>Copy</button>"
USUAL = "all defaults: RTN, 4 bits, groups of 64"  # beside a command without a flag
HELD = "The files of a checkpoint hold codes in the widths of their format, 2 and 3 bits often as 4; the card in it says how many bits that is."
COLUMNS = ("configuration", "model", "revision", "metric", "layer", "value", "unit", "low", "high", "interval", "windows", "n", "not_finite", "how", "note",
           "origin", "device", "date", "method", "params", "kv_bits", "head_bits", "text", "calibration", "seed")  # fmt: skip


def command_of(report: Report) -> str:
    """The command that repeats a report's experiment; flags at their defaults are left out."""
    experiment, spec = report.experiment, report.experiment.spec
    evaluation, calibration = experiment.evaluation, experiment.calibration
    told = {
        "kv-bits": (spec.kv_bits, 16), "head-bits": (spec.head_bits, 16), "evaluation": (evaluation.source, "bundled"), **_read(calibration),
        "length": (evaluation.length, usual_length(experiment)), "tokens": (evaluation.tokens if evaluation.tokens < ALL else 0, TOKENS),
    }  # fmt: skip
    pasted = ["--text", "TEXT.txt"] if "pasted" in (evaluation.source, calibration.source) else []
    return shlex.join([*_words("run", report), *_flags(told), *pasted])


def saving_of(report: Report, form: str = "auto") -> str:
    """The command that writes a report's quantized model as a checkpoint in a format of `save --as`; empty where there is none to write."""
    experiment = report.experiment
    calibration = experiment.calibration
    if experiment.model.random or experiment.spec.is_baseline or calibration.source == "pasted":
        return ""
    return shlex.join([*_words("save", report), *_flags(_read(calibration)), *(["--as", form] if form != "auto" else []), "--to", "my-model"])


def _read(calibration: TextRef) -> dict[str, tuple[Scalar, Scalar]]:
    windows = calibration.tokens // calibration.length
    return {"calibration": (calibration.source, "bundled"), "sequences": (windows, 16), "seed": (calibration.seed, 0)}


def _flags(told: Mapping[str, tuple[Scalar, Scalar]]) -> list[str]:
    """Flags as words, by name their value and what is in force without them."""
    return [word for name, (value, usual) in told.items() if value != usual for word in (f"--{name}", str(value))]


def usual_length(experiment: Experiment) -> int:
    """The tokens of a window without --length: the model's own, up to what a text is cut into; no window is longer than its model's own."""
    return DEMO_LENGTH if experiment.model.name == DEMO else 2048 if experiment.evaluation.source == "wikitext2" else 1024


@cache
def catalogue() -> list[dict[str, Any]]:
    """The methods and their fields, as the page has them."""
    return json.loads(METHODS.read_text())["methods"]


def _words(command: str, report: Report) -> list[str]:
    """A command of the explorer up to the method's parameters; what is at its default is left out."""
    spec = report.experiment.spec
    words = ["python", "-m", "explorer", command, *_flags({"model": (report.experiment.model.name, DEMO), "method": (spec.method, METHOD)})]
    return words + [word for name, value in unusual(spec, catalogue()) for word in (f"--{name.replace('_', '-')}", str(value))]


def as_csv(reports: Sequence[Report]) -> str:
    """One row a number, those of the whole model first; histograms and other arrays stay out, the JSON has them. interval: what low and high are;
    windows: how many of the evaluation text it is over; n: how many tokens, weights or runs were averaged; note: why nothing
    is concluded from the number; seed: of the calibration text, where one was read; origin: as in `findings`, of a report that is not whole what it lacks.
    """
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for of_layers in (False, True):
        for report in reports:
            model, spec, p = report.experiment.model, report.experiment.spec, report.provenance
            params = " ".join(f"{name}={value}" for name, value in spec.params)
            seed = report.experiment.calibration.seed if p.get("calibration_tokens") else ""
            asked = (spec.method, params, spec.kv_bits, spec.head_bits, p.get("text", ""), p.get("calibration", ""), seed)
            for m in report.measurements:
                if not isinstance(m.value, list | dict) and bool(m.layer) == of_layers:
                    found = (m.metric, m.layer, m.value, m.unit, m.low, m.high, *interval(m, report), m.n, m.bad, m.how, doubt(report, m.metric))
                    where = (f"incomplete, {rest}" if (rest := awaited(report)) else origin(p), p.get("device", ""), p.get("date", ""))
                    rows.writerow(map(harmless, (report.name, model.name, model.revision, *found, *where, *asked)))
    return out.getvalue()


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
    return json.dumps([noted(report) | {"command": command_of(report)} for report in reports], indent=1)


def noted(report: Report) -> dict[str, Any]:
    """A report as JSON-ready data, and in "notes" why nothing is concluded from some of its numbers."""
    return plain(report) | {"notes": doubts(report)}


def commands(reports: Sequence[Report], live: bool = False) -> str:
    """What repeats each report on the command line, and what writes its model as a checkpoint that loads elsewhere, as HTML. live: on a page that can
    make the checkpoint itself, by a button.
    """
    return "".join(_section(r, live) for r in reports) + held(reports)


def _section(report: Report, live: bool = False) -> str:
    command = command_of(report)
    usual = f" <small>{USUAL}</small>" if command == "python -m explorer run" else ""
    return f"<section><h3>{escape(report.name)} {COPY}{usual}</h3><pre tabindex='0'>{escape(command)}</pre>{_saving(report, live)}</section>"


def held(reports: Sequence[Report]) -> str:
    """What the files of a checkpoint hold, as HTML; "" where none of the reports can be written."""
    return f"<p><small>{HELD}</small></p>" if any(map(saving_of, reports)) else ""


def _saving(report: Report, live: bool) -> str:
    line = saving_of(report)
    if not line:
        return ""
    spec = report.experiment.spec
    fits = in_gguf(spec.method, dict(spec.params), catalogue())
    picks = [(f"save:{report.key}", "download it"), *[(f"save:gguf-{report.key}", "as GGUF, for llama.cpp")] * fits] if live else ()
    buttons = " ".join(f"<button type='button' class='act' data-pick='{pick}'>{words}</button>" for pick, words in picks)
    return f"<p>As a checkpoint that loads elsewhere: {COPY} {buttons}</p><pre tabindex='0'>{escape(line)}</pre>"


def report_page(reports: Sequence[Report], layer: str) -> str:
    """`as_html` with the comparison, the style and the script of the explorer's own page. layer: the one whose figures are drawn, "" for none."""
    style, script = (ASSETS.joinpath(name).read_text() for name in ("style.css", "page.js"))
    return as_html(reports, layer, comparison(reports, judged(reports), live=False), style, script)


def as_html(reports: Sequence[Report], layer: str, table: str, style: str, page: str = "() => {}") -> str:
    """One page that needs nothing else. table: the comparison as HTML; style: CSS; page: the page's script, for its chips and tables. Figures that no
    report has numbers for are left out.
    """
    from plotly.offline import get_plotlyjs

    measured = {m.metric for report in reports for m in report.measurements}
    parts, drawings = [], {}
    for figure in figures().values():
        if measured.issuperset(figure.needs):
            drawings[figure.name] = figure.draw(reports, layer)
            words = f"{of_metrics(reports, figure.needs)} {escape(' '.join((figure.summary(reports, layer), absent(reports, figure.needs))).strip())}"
            parts.append(
                f"<section><h2>{escape(figure.title)}</h2><p>{escape(figure.see)}</p><div id='{figure.name}'></div><p class='summary'>{words}</p>"
                f"<details><summary>Why</summary><p>{escape(figure.why)}</p></details></section>"
            )
    origins = "".join(f"{_section(r)}{_facts(r)}" for r in reports) + held(reports)
    # "</" would end the script element, whatever it stands in.
    data = json.dumps(drawings).replace("</", "<\\/")
    own = PAGE.replace("DARK", " ".join(re.findall(r"\.dark {([^}]*)}", style)))
    script = f"for (const [name, f] of Object.entries({data})) Plotly.newPlot(name, f.data, f.layout, {{displaylogo: false, responsive: true}});"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Quantization report</title><style>{style}{own}</style></head><body><h1>Quantization report</h1>{legend()}{table}{''.join(parts)}"
        f"<h2>How to repeat it</h2>{origins}<script>{get_plotlyjs()}</script><script>{script}</script><script>({page.rstrip()})()</script></body></html>"
    )


def _facts(report: Report) -> str:
    kept = ("device", "torch", "transformers", "kernel_summary", "text", "calibration", "date")
    told = {name: str(report.provenance[name]) for name in kept if report.provenance.get(name)}
    told |= {"incomplete": awaited(report)} if report.missing else {}
    return f"<table class='facts'>{''.join(f'<tr><th>{name}</th><td>{escape(said)}</td></tr>' for name, said in told.items())}</table>"


PAGE = """
:root { color-scheme: light dark; --body-text-color: #1e293b; --body-text-color-subdued: #475569; --border-color-primary: #cbd5e1; --body-background-fill: #fff;
  --background-fill-primary: #fff; --background-fill-secondary: #f1f5f9; }
@media screen and (prefers-color-scheme: dark) { :root { --body-text-color: #f1f5f9; --body-text-color-subdued: #a8b3c4; --border-color-primary: #3f4d63;
  --body-background-fill: #0f172a; --background-fill-primary: #0f172a; --background-fill-secondary: #1e293b; DARK } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: var(--body-text-color);
  background: var(--body-background-fill); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--background-fill-secondary); padding: .6rem; border-radius: 6px; }
.facts th { text-align: left; vertical-align: top; padding-right: 1rem; font-weight: 500; } .facts td { overflow-wrap: anywhere; }
@media print { section, tr { break-inside: avoid; } .scroll { overflow: visible; } }
"""  # DARK: what the style says of the page's class of that name; paper stays white
