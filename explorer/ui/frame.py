"""A figure on the page: its heading, one sentence on what to see, the plot, the same in words, and a fold that says why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components.plot import PlotData

from explorer.chips import of_answer, of_metrics
from explorer.figures import Chart, Figure, figures
from explorer.findings import awaited
from explorer.gaps import absent
from explorer.records import Report
from explorer.ui.tab import View


def plotted(name: str, plot: dict[str, Any]) -> PlotData:
    """Plotly JSON as the page takes it, with a button that downloads it as SVG."""
    config = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]], "toImageButtonOptions": {"format": "svg", "filename": name}}
    return PlotData(type="plotly", plot=json.dumps(drawable(plot | {"config": config}), allow_nan=False))


def drawable(value: Any) -> Any:
    """A plot without NaN and infinities, which JSON in a browser does not know: they become gaps."""
    if isinstance(value, dict):
        return {key: drawable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [drawable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def heading(title: str, see: str) -> None:
    """A figure's heading and what to look for."""
    gr.HTML(headed(title, see))


def headed(title: str, see: str) -> str:
    """The same as HTML."""
    return f"<h2 class='figure'>{escape(title)}</h2><p class='see'>{escape(see)}</p>"


def told(words: str, chips: str = "") -> str:
    """What stands under a plot: the chips of its numbers, then the same in words, with **bold** of Markdown. HTML; `words` are escaped here."""
    bold = re.sub(r"[*][*](.+?)[*][*]", r"<b>\1</b>", escape(words))
    return f"<p>{chips} {bold}</p>" if words else ""


def frame(item: Figure | Chart, plot: dict[str, Any], words: str, look: str = "", controls: Callable[[], None] | None = None) -> list[Any]:
    """Lays out a figure or chart; returns [plot, words], which `chart_values` or `figure_values` fills anew, and the heading where `look` takes the
    place of its `see`. words: as `told` gives them; controls lays out the figure's own ones, above the plot.
    """
    head = gr.HTML(headed(item.title, look or item.see))
    if controls is not None:
        controls()
    shown = [gr.Plot(plotted(item.name, plot), show_label=False, elem_id=f"plot-{item.name}", container=False)]
    shown.append(gr.HTML(words, elem_classes=["summary"], padding=False))
    with gr.Accordion("Why", open=False):
        gr.Markdown(item.why)
    return [*shown, head] if look else shown


def chart(item: Chart, data: dict[str, Any] | None = None, controls: Callable[[], None] | None = None) -> list[Any]:
    """Lays out a chart; returns [plot, words], and for a chart whose `looks` depend on its data the heading as well. controls: as `frame` takes it."""
    data = data or {}
    plot = item.draw(data)
    return frame(item, plot, chart_words(item, plot, data), item.looks(data) if item.looks else "", controls)


def chart_words(item: Chart, plot: dict[str, Any], data: dict[str, Any]) -> str:
    """What stands under a chart; nothing under an empty one, where a sentence stands in the plot's place."""
    return told(item.summary(data), of_answer(item, data)) if plot["data"] else ""


def chart_values(item: Chart, data: dict[str, Any]) -> list[Any]:
    """New values for what `chart` laid out."""
    plot = item.draw(data)
    return [plotted(item.name, plot), chart_words(item, plot, data), *([headed(item.title, item.looks(data))] if item.looks else [])]


def figure_values(item: Figure, reports: Sequence[Report], layer: str) -> list[Any]:
    """New values for what `frame` laid out of a figure of reports."""
    plot, measuring = item.draw(reports, layer), any(r.missing and not r.stopped for r in reports)
    if measuring and not plot["data"] and plot["layout"].get("annotations"):
        [note] = plot["layout"]["annotations"]
        plot = plot | {"layout": plot["layout"] | {"annotations": [note | {"text": "Being measured."}]}}
    return [plotted(item.name, plot), figure_words(item, reports, layer)]


def figure_words(item: Figure, reports: Sequence[Report], layer: str) -> str:
    """What stands under a figure of reports: its summary, and which of them it cannot show yet."""
    return told(f"{item.summary(reports, layer)} {absent(reports, item.needs)}".strip(), of_metrics(reports, item.needs))


def fold(title: str) -> None:
    """Lays out a button that unfolds, on a phone, what of a tab has the class "folded": there the first figure comes before the controls. A wide page shows
    these and no button, as does a phone while something is measured.
    """
    button = f"<button type='button' class='fold' aria-expanded='false'>{escape(title)}</button>"
    gr.HTML(button, padding=False, elem_classes=["tab-fold"])


def in_rows(wanted: Sequence[Figure]) -> Iterator[list[Figure]]:
    """Figures by row of the page: a wide one alone, others in pairs; the order stays."""
    row: list[Figure] = []
    for figure in wanted:
        if row and (figure.wide or len(row) == 2):
            yield row
            row = []
        row.append(figure)
        if figure.wide:
            yield row
            row = []
    if row:
        yield row


def report_figures(tab: str, reports: Sequence[Report] = ()) -> View:
    """Lays out the report figures of a tab, filled with `reports`; a figure is shown while some report measured what it needs."""
    wanted = [figure for figure in figures().values() if figure.tab == tab]
    outputs: list[Any] = [gr.HTML(**awaiting(wanted, reports), padding=False)]
    for row in in_rows(wanted):
        with gr.Row():
            for figure in row:
                with gr.Column(min_width=320, visible=shown(figure, reports)) as column:
                    outputs += [column, *frame(figure, figure.draw(reports, ""), figure_words(figure, reports, ""))]

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        updates: list[Any] = [gr.HTML(**awaiting(wanted, reports))]
        for figure in wanted:
            updates += [gr.Column(visible=shown(figure, reports)), *figure_values(figure, reports, layer)]
        return updates

    return View(outputs, render, pure=True)


def awaiting(wanted: Sequence[Figure], reports: Sequence[Report]) -> dict[str, Any]:
    """Value and visibility of the line in the place of all figures while none is there because a report is not whole."""
    rest = [f"{r.name} ({awaited(r)})" for r in reports if r.missing]
    words = f"Nothing to draw yet: {', '.join(rest)}." if rest and not any(shown(figure, reports) for figure in wanted) else ""
    return {"value": f"<p class='hint'>{escape(words)}</p>" if words else "", "visible": bool(words)}


def shown(figure: Figure, reports: Sequence[Report]) -> bool:
    """Whether any of the reports measured what a figure needs; a page without reports shows all of them empty."""
    measured = {m.metric for report in reports for m in report.measurements}
    return not reports or measured.issuperset(figure.needs)
