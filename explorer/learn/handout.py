"""A printable page for each walkthrough: its questions with a line to write on, and below the fold the numbers and conclusions. HTML that stands alone."""

from __future__ import annotations

from functools import cache
from html import escape
from urllib.parse import quote

from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Step, conclude, stories
from explorer.records import change
from explorer.vocabulary import term

STYLE = (
    "body{font:11.5px/1.3 system-ui,sans-serif;max-width:190mm;margin:4mm auto;color:#111}h1{font-size:16px;margin:0}h2{font-size:13px;margin:4px 0 0}"
    "p{margin:1px 0}table{border-collapse:collapse;margin:3px 0 1px}td,th{border:1px solid #999;padding:0 5px;text-align:right;font-size:10px}"
    "th{text-align:left;font-weight:500}.ask{border-bottom:1px dotted #666;padding-bottom:12px}"
    ".fold{border-top:1px dashed #666;margin-top:6px;text-align:center;color:#555}.no{color:#555}@page{size:A4;margin:8mm}"
)
COLUMNS = ("bits_per_weight", "perplexity_delta", "kld_mean")


def handout(name: str) -> str:
    """The page of one story, with the recorded numbers. Raises KeyError for a story that does not exist."""
    story = stories()[name]
    asked = "".join(_asked(number, step) for number, step in enumerate(story.steps, 1))
    found = "".join(_found(number, step) for number, step in enumerate(story.steps, 1))
    dates = sorted({str(recorded()[run].provenance.get("date", "")) for step in story.steps for run in step.runs if run in recorded()})
    origin = f"Measured on the bundled model, {dates[-1]}; +- is half of a 95% interval." if dates else "Arithmetic and recorded tasks."
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(story.title)}</title><style>{STYLE}</style><h1>{escape(story.title)}</h1>"
        f"<p>{escape(story.summary)} Predict first, then fold the page open.</p>{asked}<p class='fold'>fold here</p><p>{escape(origin)}</p>{found}"
        f"<p class='no'>Source: {escape(story.source)}. Quantization Explorer.</p></html>"
    )


def _asked(number: int, step: Step) -> str:
    """What a step says and asks, with a line to write on."""
    predict = step.predict
    limits = f"{predict.low:,g} to {predict.high:,g} {predict.unit}".strip()
    ask = f"{predict.ask} ({' / '.join(predict.options) or limits})"
    return f"<h2>{number}. {escape(step.title)}</h2><p>{escape(step.text)}</p><p class='ask'><b>Predict:</b> {escape(ask)}</p>"


def _found(number: int, step: Step) -> str:
    """What was measured, what to conclude, and what to keep in mind."""
    found = conclude(step, recorded(), recorded_answers())
    return (
        f"{_table(step)}<p><b>{number}. {'Found' if found.holds else 'Not on this model'}:</b> {escape(found.text)} "
        f"<span class='no'>Keep in mind: {escape(step.beware)}</span></p>"
    )


def _table(step: Step) -> str:
    rows = []
    named = step.chart.get("names") if step.chart.get("kind") == "dots" else None
    names = named or [recorded()[run].name for run in step.runs]
    for run, name in zip(step.runs, names, strict=True):
        report = recorded()[run]
        cells = []
        for metric in COLUMNS:
            m = report.find(metric)
            half = f" +- {(m.high - m.low) / 2:.3g}" if m is not None and m.low is not None and m.high is not None and m.high > m.low else ""
            shown = f"{m.value:.4g}{half}" if m is not None else ""
            if m is not None and metric == "perplexity_delta" and m.value > 100:
                words, interval = change(m.value, m.low, m.high)
                shown = f"{words} ({interval})" if interval else words
            cells.append(f"<td>{shown}</td>")
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{term(metric).axis}</th>" for metric in COLUMNS)
    return f"<table><tr><th>run</th>{head}</tr>{''.join(rows)}</table>" if rows else ""


@cache
def handout_link(name: str) -> str:
    """A link that downloads the handout, with the page inside it, so that no file has to be kept."""
    page = quote(handout(name))
    return f"<a class='handout' download='{escape(name)}.html' href='data:text/html;charset=utf-8,{page}'>Printable handout of this walkthrough</a>"
