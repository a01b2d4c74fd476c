"""The page as a whole: controls on the left, comparison and figures on the right. Handlers are in page.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.figures import Figure, figures
from explorer.records import Report
from explorer.ui.controls import build_controls
from explorer.ui.page import Page, Runner, status
from explorer.ui.session import Shelf

STYLE = Path(__file__).parent.parent.parent / "assets" / "style.css"
TEXTS = [("bundled", "bundled"), ("yours", "pasted"), ("WikiText-2", "wikitext2"), ("C4", "c4")]


def theme() -> gr.themes.Base:
    """Contrast of at least 4.5 for all text, in light and dark; local fonts only."""
    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="md")
    soft, soft_dark = "*neutral_600", "*neutral_300"
    return base.set(
        button_primary_background_fill="#0a62a0", button_primary_background_fill_dark="#0a62a0", button_primary_text_color="white",
        button_cancel_background_fill="#a4282f", button_cancel_background_fill_dark="#a4282f", button_cancel_text_color="white",
        body_text_color_subdued=soft, body_text_color_subdued_dark=soft_dark, block_info_text_color=soft, block_info_text_color_dark=soft_dark,
    )  # fmt: skip


def build(runner: Runner, seeds: list[Report], catalogue: list[dict[str, Any]], models: list[str]) -> gr.Blocks:
    """The app's Blocks. `catalogue`: the methods and their fields as JSON; `models`: names offered in the list."""
    page = Page(runner, Shelf(seeds))
    first = page.view(page.shelf.first(), None)
    with gr.Blocks(title="Quantization Explorer", analytics_enabled=False) as blocks:
        gr.HTML(
            "<header><h1>Quantization Explorer</h1><p>Quantize a language model, run it in low bits, and see what it costs and what it saves. "
            "Every number is measured, with its interval, device and kernel.</p></header>"
        )
        with gr.Row(equal_height=False, elem_id="page"):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                inputs, parts = _controls(page, catalogue, models)
            with gr.Column(scale=4, min_width=320, elem_id="results"):
                parts |= _results(first)
        _wire(page, inputs, parts)
    return blocks


def _controls(page: Page, catalogue: list[dict[str, Any]], models: list[str]) -> tuple[list[Any], dict[str, Any]]:
    model = gr.Dropdown(models, value=models[0], allow_custom_value=True, label="Model", info="The bundled model, a hub id, or a folder.", elem_id="model")
    default = "rtn"
    method = gr.Dropdown([(m["title"], m["name"]) for m in catalogue], value=default, label="Method", elem_id="method", filterable=False)
    page.controls = build_controls(catalogue, method, default)
    with gr.Accordion("Text, calibration, KV cache", open=False, elem_id="more"):
        evaluation = gr.Radio(TEXTS, value="bundled", label="Evaluation text", elem_id="evaluation")
        reading = {m["name"] for m in catalogue if m["needs_inputs"]}
        with gr.Column(visible=default in reading, elem_id="calibration") as calibrated:
            calibration = gr.Radio(TEXTS, value="bundled", label="Calibration text")
            with gr.Row():
                sequences = gr.Number(16, minimum=1, maximum=1024, precision=0, label="Sequences", min_width=100)
                seed = gr.Number(0, minimum=0, precision=0, label="Seed", min_width=100)
        text = gr.Textbox(label="Your text", lines=4, max_lines=8, max_length=200_000, visible=False, placeholder="At least 512 tokens, about 350 words.")
        kv_bits = gr.Radio([16, 8, 4, 2], value=16, label="KV cache bits", info="Below 16: KIVI, the newest 32 tokens stay in 16 bits.", elem_id="kv")
    for source in (evaluation, calibration):
        source.change(lambda *chosen: gr.Textbox(visible="pasted" in chosen), [evaluation, calibration], text, queue=False, api_visibility="private")
    method.change(lambda name: gr.Column(visible=name in reading), method, calibrated, queue=False, api_visibility="private")
    with gr.Column(elem_id="go"):
        with gr.Row():
            run = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
            cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=100)
        line = gr.HTML(status("Recorded results. Change a control and press Run to measure here."), elem_id="status", padding=False)
    inputs = [model, method, evaluation, text, calibration, sequences, seed, kv_bits, *(control.component for control in page.controls)]
    return inputs, {"run": run, "cancel": cancel, "status": line}


def _results(first: Sequence[Any]) -> dict[str, Any]:
    compared, table, written, layer, *drawn = first
    shown = {"figures": []}
    with gr.Row(elem_id="compared-row"):
        shown["compared"] = gr.Dropdown(
            compared.choices, value=compared.value, multiselect=True, allow_custom_value=True, label="Compared", elem_id="compared",
            info="Up to four configurations beside the 16-bit baseline; × takes one off the page, Run adds one.", scale=6,
        )  # fmt: skip
        shown["reset"] = gr.Button("Reset", size="sm", elem_id="reset", scale=1, min_width=80)
    shown["table"] = gr.HTML(table, elem_id="comparison")
    gr.HTML("<h2 class='figure'>What each one writes</h2>")
    shown["samples"] = gr.HTML(written)
    place = {figure.name: index for index, figure in enumerate(figures().values())}
    for row in in_rows(list(figures().values())):
        if row[0].by_layer and "layer" not in shown:
            shown["layer"] = gr.Dropdown(layer.choices, value=layer.value, label="Layer shown below", elem_id="layer", filterable=False)
        with gr.Row():
            for figure in row:
                i = place[figure.name]
                with gr.Column(min_width=320, visible=drawn[3 * i].visible) as column:
                    shown["figures"] += [column, *_figure(figure, drawn[3 * i + 1], drawn[3 * i + 2])]
    return shown


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


def _figure(figure: Figure, chart: Any, words: str) -> list[Any]:
    gr.HTML(f"<h2 class='figure'>{escape(figure.title)}</h2><p class='see'>{escape(figure.see)}</p>")
    shown = [gr.Plot(chart, show_label=False, elem_id=f"plot-{figure.name}", container=False), gr.Markdown(words, elem_classes=["summary"])]
    with gr.Accordion("Why", open=False):
        gr.Markdown(figure.why)
    return shown


def _wire(page: Page, inputs: list[Any], parts: dict[str, Any]) -> None:
    compared, layer = parts["compared"], parts["layer"]
    everything = [parts["status"], compared, parts["table"], parts["samples"], layer, *parts["figures"]]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    run = parts["run"].click(page.run, [compared, layer, *inputs], everything, concurrency_limit=64, **quiet)
    cancelled = status("Cancelled. What was measured before is kept; press Run to go on from there.")
    parts["cancel"].click(lambda: cancelled, None, parts["status"], cancels=[run], queue=False, **quiet)
    compared.input(page.choose, [compared, layer], everything, **quiet)
    parts["reset"].click(page.reset, [layer], everything, **quiet)
    by_layer = [parts["figures"][3 * i + k] for i, figure in enumerate(figures().values()) if figure.by_layer for k in (1, 2)]
    layer.input(page.pick_layer, [compared, layer], by_layer, **quiet)
