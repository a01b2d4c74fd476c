"""Layers: how far each layer moves, which one costs the quality, and where to spend a budget of bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.figures import allocation, sensitivity
from explorer.records import Report
from explorer.ui.asking import model_of
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, report_figures
from explorer.ui.status import status
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.layers.handlers import EVERY, FILES, Sensitivities

RECORDED = Path(__file__).parents[4] / "assets" / "sensitivity.json"
METHODS = [("RTN", "rtn"), ("HQQ", "hqq"), ("GPTQ", "gptq"), ("AWQ", "awq")]
MEASURES = [("KL divergence", "kld"), ("perplexity change", "delta"), ("the layer's output error", "output_error")]
WIDTH, BUDGET = 3, 3.3  # what a new page shows: bits of the map, bits a weight to spend


@cache
def recorded() -> dict[str, Any]:
    """The sensitivity of the bundled model that ships with the project, {} when there is none."""
    return json.loads(RECORDED.read_text()) | {"recorded": True} if RECORDED.exists() else {}


def build(shell: Shell) -> View:
    view = report_figures("layers", shell.shelf.first())
    handlers, model = Sensitivities(shell, recorded()), model_of(shell.shelf.first())
    start = handlers.start(model)
    key = gr.Textbox(start, visible="hidden", elem_id="sensitivity-key")
    seen = gr.Textbox(model, visible="hidden")
    title = gr.HTML(handlers.titles(start)[0])
    with gr.Row(equal_height=False, elem_classes=["ly-bar"]):
        method = gr.Radio(METHODS, value="rtn", label="Method", min_width=250)
        group = gr.Radio([32, 64, 128], value=64, label="Group size", min_width=190)
        asymmetric = gr.Checkbox(True, label="Asymmetric", info="RTN, GPTQ and AWQ; HQQ always is.", min_width=160)
    with gr.Row(elem_classes=["ly-bar"]):
        measure = gr.Button("Measure sensitivity", variant="primary", min_width=150, elem_id="sensitivity-run")
        cancel = gr.Button("Cancel", variant="stop", min_width=90)
    line = gr.HTML(handlers.line(start, model), elem_id="sensitivity-status", padding=False)
    with gr.Row(equal_height=False, elem_classes=["ly-bar"]):
        width = gr.Radio([2, 3, 4, 8], value=WIDTH, label="Bits shown", min_width=190)
        what = gr.Radio(MEASURES, value="kld", label="Measure", min_width=320)
    maps: list[Any] = []
    with gr.Row():
        for item, share in ((sensitivity.MAP, 2), (sensitivity.RANKING, 3)):  # the ranking names every layer
            with gr.Column(min_width=320, scale=share):
                maps += chart(item, (handlers.kept.get(start) or {}) | {"width": WIDTH, "what": "kld"})
    asked = [shell.panel.model, method, group, asymmetric, width, what, key]
    stop = Cancel(status("Cancelled. The layers measured so far are kept."))
    stop.stops(measure.click, handlers.measured, asked, [line, key, *maps], concurrency_limit=16)
    stop.by(cancel, line)
    gr.on([width.input, what.input], handlers.drawn, [key, width, what], maps, trigger_mode="always_last", **QUIET)
    budget, widths = allocator(shell, handlers, key, title)
    shell.linked["layers"] = {"method": method, "group": group, "asymmetric": asymmetric, "width": width, "measure": what, "budget": budget, "widths": widths}

    def render(reports: Sequence[Report], layer: str, seen: str, key: str, width: int, what: str) -> list[Any]:
        return [*view.drawn(reports, layer), *handlers.arrived(model_of(reports), seen, key, width, what)]

    return View([*view.outputs, line, key, *maps, seen], render, [seen, key, width, what])


def allocator(shell: Shell, handlers: Sensitivities, key: Any, title: Any) -> tuple[Any, Any]:
    """Lays out and wires the budget, its map, its rules and the comparison with one width for all; gives the controls of budget and widths.
    title: the heading of the sensitivity.
    """
    own_title = gr.HTML(handlers.titles(key.value)[1])
    budget = gr.Slider(2.0, 8.5, BUDGET, step=0.05, label="Budget, stored bits a weight", info="Codes, scales and zeros counted.", elem_id="budget")
    with gr.Row(elem_classes=["ly-bar"]):
        choice = gr.Radio(
            [("all measured", EVERY), ("4 and 8, which files hold", FILES)], value=EVERY, label="Widths", elem_id="widths",
            info="Files: q, k and v alike, gate and up alike, as vLLM runs each as one matrix.",
        )  # fmt: skip
    start = handlers.allocated(key.value, BUDGET) if key.value else {}
    outputs: list[Any] = []
    with gr.Row():
        for item in (allocation.MAP, allocation.CHART):
            with gr.Column(min_width=320):
                outputs += chart(item, start)
    with gr.Accordion("The assignment as rules of the method “Mixed”", open=False):
        text = gr.Textbox(start.get("rules", ""), lines=6, max_lines=14, label="Rules", buttons=["copy"], interactive=False, elem_id="rules")
    with gr.Row(elem_classes=["ly-bar"]):
        run = gr.Button("Run it", variant="primary", min_width=150, elem_id="allocation-run")
        cancel = gr.Button("Cancel", variant="stop", min_width=90)
    line = gr.HTML(handlers.offer(start), padding=False, elem_id="allocation-status")
    moved = [budget.change, choice.change, key.change]  # a link moves the budget, too
    gr.on(moved, handlers.solved, [key, budget, choice], [*outputs, text, line], trigger_mode="always_last", **QUIET)
    key.change(handlers.titles, key, [title, own_title], **QUIET)
    shared = [shell.compared, shell.layer]
    asked = [key, budget, choice, *shared, *shell.panel.options.values()]
    stop = Cancel(status("Cancelled. What was measured before is kept."))
    stop.stops(run.click, handlers.ran, asked, [line, *outputs[2:], *shared], concurrency_limit=16)
    stop.by(cancel, line)
    return budget, choice


TAB = Tab("layers", "Layers", build, order=30)
