"""A printable page for each walkthrough: its steps, a place to write the prediction, the numbers and the conclusions. HTML that stands alone."""

from __future__ import annotations

from functools import cache
from html import escape
from urllib.parse import quote

from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Step, conclude, stories

STYLE = (
    "body{font:12px/1.35 system-ui,sans-serif;max-width:180mm;margin:8mm auto;color:#111}h1{font-size:18px;margin:0}h2{font-size:13px;margin:8px 0 2px}"
    "p{margin:2px 0}table{border-collapse:collapse;margin:3px 0}td,th{border:1px solid #999;padding:1px 6px;text-align:right;font-size:11px}"
    "th{text-align:left;font-weight:500}.ask{border-bottom:1px dotted #666;padding-bottom:2px}.no{color:#555}@page{size:A4;margin:10mm}"
)
COLUMNS = (("bits_per_weight", "bits"), ("perplexity_delta", "perplexity, %"), ("kld_mean", "KL, nats"))


def handout(name: str) -> str:
    """The page of one story, with the recorded numbers. Raises KeyError for a story that does not exist."""
    story = stories()[name]
    body = "".join(_step(number, step) for number, step in enumerate(story.steps, 1))
    dates = sorted({str(recorded()[run].provenance.get("date", "")) for step in story.steps for run in step.runs if run in recorded()})
    origin = f"Measured on the bundled model, {dates[-1]}; +- is half of a 95% interval." if dates else "Arithmetic."
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(story.title)}</title><style>{STYLE}</style><h1>{escape(story.title)}</h1>"
        f"<p>{escape(story.summary)} {escape(origin)}</p>{body}<p class='no'>Source: {escape(story.source)}. Quantization Explorer.</p></html>"
    )


def _step(number: int, step: Step) -> str:
    found = conclude(step, recorded(), recorded_answers())
    options = " / ".join(step.predict.options)
    ask = f"{step.predict.ask} {f'({options})' if options else ''}"
    return (
        f"<h2>{number}. {escape(step.title)}</h2><p>{escape(step.text)}</p><p class='ask'><b>Predict:</b> {escape(ask)}</p>{_table(step)}"
        f"<p><b>{'Found' if found.holds else 'Not on this model'}:</b> {escape(found.text)}</p><p class='no'>Not to conclude: {escape(step.beware)}</p>"
    )


def _table(step: Step) -> str:
    rows = []
    for run in step.runs:
        report = recorded()[run]
        cells = []
        for metric, _ in COLUMNS:
            m = report.find(metric)
            half = f" +- {(m.high - m.low) / 2:.3g}" if m is not None and m.low is not None and m.high is not None and m.high > m.low else ""
            cells.append(f"<td>{m.value:.4g}{half}</td>" if m is not None else "<td></td>")
        rows.append(f"<tr><th>{escape(report.name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{title}</th>" for _, title in COLUMNS)
    return f"<table><tr><th>run</th>{head}</tr>{''.join(rows)}</table>" if rows else ""


@cache
def handout_link(name: str) -> str:
    """A link that downloads the handout, with the page inside it, so that no file has to be kept."""
    page = quote(handout(name))
    return f"<a class='handout' download='{escape(name)}.html' href='data:text/html;charset=utf-8,{page}'>Printable handout of this walkthrough</a>"
