"""Compare: up to four configurations beside the 16-bit baseline, in a table, in three answers, and in figures that place them against their bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from explorer.records import Report
from explorer.table import comparison
from explorer.ui.frame import report_figures
from explorer.ui.session import is_baseline, keys_of, usual
from explorer.ui.tab import Shell, Tab, View
from explorer.verdict import judged, questions

# Not there for whoever came by a link or has run something: assets/address.js, style.css.
NEW = "<p class='hint'>New here? <a href='?tab=learn' data-tab='learn'>Start with walkthrough 1</a>, or point at a row's name to read what it is.</p>"


def about(reports: Sequence[Report], key: str | None) -> tuple[dict[str, Any], str]:
    """(choices and value of the picker, the three answers on the configuration of this key): the usual one where it is not on the page."""
    quantized = [r for r in reports if not is_baseline(r)]
    keys = keys_of(quantized)
    at = keys.index(key if key in keys else usual(quantized)) if keys else -1
    picker = {"choices": list(zip([r.name for r in quantized], keys, strict=True)), "value": keys[at] if keys else None}
    if not quantized:
        return picker, "<p class='hint'>Run a quantized configuration to see its three answers.</p>"
    return picker, questions(quantized[at], next(filter(is_baseline, reports), None), reports)


def build(shell: Shell) -> View:
    first = shell.shelf.first()
    gr.HTML(NEW, elem_id="newcomer", padding=False)
    table = gr.HTML(comparison(first, judged(first)), elem_id="comparison")
    choices, answered = about(first, None)
    with gr.Row(elem_id="asked-row"):
        gr.HTML("<h2 class='figure'>Three questions everybody asks</h2>")
        picker = gr.Dropdown(**choices, label="About", elem_id="asked", filterable=False, container=False, scale=0, min_width=240)
    answers = gr.HTML(answered, elem_id="answers")
    chosen = gr.Textbox("", visible="hidden", elem_id="asked-for")  # what the reader picked; until then the newest run is shown
    figures = report_figures("compare", first)

    def draw(reports: Sequence[Report], layer: str, key: str) -> list[Any]:
        shown, told = about(reports, key)
        return [comparison(reports, judged(reports)), gr.Dropdown(**shown), told, *figures.render(reports, layer)]

    drawing = View([table, picker, answers, *figures.outputs], draw, pure=True)

    def render(reports: Sequence[Report], layer: str, picked: str) -> list[Any]:
        return drawing.drawn(reports, layer, picked if picked in keys_of(reports) else usual(reports, shell.shelf.age))

    def picked(keys: list[str], key: str | None) -> list[Any]:
        return [about(shell.shelf.pick(keys), key)[1], key or ""]

    picker.input(picked, [shell.compared, picker], [answers, chosen], show_progress="hidden", api_visibility="private")
    return View(drawing.outputs, render, [chosen])


TAB = Tab("compare", "Compare", build, order=0)
