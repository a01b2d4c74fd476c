"""Text: what each configuration writes after the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from explorer.records import Report
from explorer.ui.tab import Shell, Tab, View
from explorer.ui.table import samples


def build(shell: Shell) -> View:
    gr.HTML("<h2 class='figure'>What each one writes</h2>")
    written = gr.HTML(samples([]), elem_id="samples")

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        return [samples(reports)]

    return View([written], render)


TAB = Tab("text", "Text", build, order=50)
