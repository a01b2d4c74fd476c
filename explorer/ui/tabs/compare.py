"""Compare: up to four configurations beside the 16-bit baseline, in a table and in the figures that place them against their bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from explorer.records import Report
from explorer.ui.frame import report_figures
from explorer.ui.tab import Shell, Tab, View
from explorer.ui.table import comparison


def build(shell: Shell) -> View:
    first = shell.shelf.first()
    table = gr.HTML(comparison(first), elem_id="comparison")
    figures = report_figures("compare", first)

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        return [comparison(reports), *figures.render(reports, layer)]

    return View([table, *figures.outputs], render)


TAB = Tab("compare", "Compare", build, order=0)
