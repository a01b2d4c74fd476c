"""The page as a whole: controls on the left, tabs on the right. What the controls do is in page.py, each tab with its handlers in tabs/."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.chips import legend
from explorer.records import Report
from explorer.ui import address, again, share
from explorer.ui.blocks import LeanBlocks
from explorer.ui.cancel import Cancel
from explorer.ui.controls import build_controls
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS, Panel
from explorer.ui.session import TEXTS, Shelf
from explorer.ui.status import status
from explorer.ui.tab import PICKS, QUIET, Runner, Shell, tabs

STYLE = Path(__file__).parent.parent.parent / "assets" / "style.css"
SCRIPTS = [STYLE.with_name(name) for name in ("figures.js", "page.js", "address.js")]
FRAMES = STYLE.with_name("frames.js")
DEFAULT = "rtn"
KIVI = "Below 16: KIVI's layout; window 32 here, 128 in the paper. The newest 32 to 63 tokens stay in 16 bits."
# On a phone the results come first: the controls, and what all tabs share, are behind these buttons, which are not there on a wide page.
FOLDS = (
    "<div class='folds'><button type='button' class='fold' id='fold' aria-expanded='false' aria-controls='controls'>Model, method</button>"
    "<button type='button' class='fold' id='fold-shared' aria-expanded='false' aria-controls='compared-row share'>Compared, layer, files</button></div>"
)
COMPARED = "Compared: up to four beside the 16-bit baseline; × takes one off; with four, Run replaces the oldest, recorded ones first"
# The page's script gives the names the colours of their places. Gradio's cross that takes all off at once tells no input; the mark stays as it is while
# something is compared, so that nothing is asked then.
CLEARED = "(keys) => { window.seated?.(keys); return keys.length ? (window.cleared ?? '') : (window.cleared = String(Date.now())); }"
# A choice in gradio's list is told twice, on the click and as the list closes: the second tells nothing new.
ONCE = """(layer) => {
  const last = window.lastLayer;
  if (last?.layer !== layer || Date.now() - last.at > 400) window.lastLayer = { layer, at: Date.now() };
  return `${layer} ${window.lastLayer.at}`;
}"""


def theme() -> gr.themes.Base:
    """Contrast of at least 4.5 for all text, in light and dark; local fonts only."""
    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="md")
    soft, soft_dark = "*neutral_600", "*neutral_300"
    return base.set(
        button_primary_background_fill="#0a62a0", button_primary_background_fill_dark="#0a62a0", button_primary_text_color="white",
        button_cancel_background_fill="#a4282f", button_cancel_background_fill_dark="#a4282f", button_cancel_text_color="white",
        body_text_color_subdued=soft, body_text_color_subdued_dark=soft_dark, block_info_text_color=soft, block_info_text_color_dark=soft_dark,
    )  # fmt: skip


def build(runner: Runner, seeds: list[Report], catalogue: list[dict[str, Any]], models: list[str], login: bool = False) -> gr.Blocks:
    """The app's Blocks. `catalogue`: the methods and their fields as JSON; `models`: names offered in the list; `login`: whether visitors may log in on
    the hub, to read gated models with their own rights.
    """
    shell = Shell(runner, Shelf(seeds), catalogue, models)
    page = Page(shell)
    with LeanBlocks(title="Quantization Explorer", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        _boxes(shell)
        boxes, going = address.boxes(), again.boxes()
        gr.HTML(
            "<a class='skip' href='#results'>Skip the controls</a>"
            f"<header data-tabs='{' '.join(tab.name for tab in tabs())}'><h1>Quantization Explorer</h1>"
            "<p>Quantize a language model, run it in low bits, see what it costs and what it saves. "
            f"Every number says how it came to be; point at its letter.</p>{legend()}</header>"
        )
        with gr.Row(equal_height=False, elem_id="page"):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                gr.HTML(FOLDS, padding=False)
                if login:
                    gr.LoginButton("Log in for gated models", logout_value="Log out ({})", size="sm", elem_id="hub-login")
                run, cancel = _controls(shell)
            with gr.Column(scale=4, min_width=320, elem_id="results"):
                whose = _compared(shell)
                shared = share.build(page)
                selects = _tabs(shell)
        stop = Cancel(status("Cancelled. What was measured before is kept; press Run to go on from there."))
        told = [shell.panel.model, shell.compared]
        gr.on([one.change for one in told], page.whose, told, whose, queue=False, trigger_mode="always_last", **QUIET)
        _wire(page, stop, run, going[0], shared["reset"], selects)
        address.wire(page, boxes)
        again.wire(page, stop, going, share.wire(blocks, page, stop, shared, run))
        stopped = stop.by(cancel, shell.status, shell.stops)
        shown = [shell.compared, shell.layer]
        stopped.then(page.cancelled, [*shown, shell.active, *shell.inputs()], [*shown, *shell.outputs()], **QUIET)
        for script in SCRIPTS:
            blocks.load(None, None, None, js=script.read_text())
    # Nothing shows gradio's own progress, but it goes through all components for each one that might, at every event: leave it a single one.
    for handler in blocks.fns.values():
        handler.show_progress_on = [shell.active]
    return blocks


def _controls(shell: Shell) -> tuple[Any, Any]:
    """Lays out model, method, parameters and options; fills shell.panel and shell.status. Gives the Run and Cancel buttons."""
    catalogue = shell.catalogue
    model = gr.Dropdown(
        shell.models,
        value=shell.models[0],
        allow_custom_value=True,
        label="Model",
        info="What is quantized: the small bundled model, a Hugging Face id, or a folder.",
        elem_id="model",
    )
    method = gr.Dropdown([(m["title"], m["name"]) for m in catalogue], value=DEFAULT, label="Method", elem_id="method", filterable=False,
        info="How weights are rounded to few bits. RTN, rounding to the nearest value, is the simplest.",
    )  # fmt: skip
    fields = build_controls(catalogue, method, DEFAULT)
    with gr.Accordion("Text, calibration, KV cache, head", open=False, elem_id="more"):
        evaluation = gr.Radio(TEXTS, value="bundled", label="Evaluation text", elem_id="evaluation")
        reading = {m["name"] for m in catalogue if m["needs_inputs"]}
        with gr.Column(visible=DEFAULT in reading, elem_id="calibration") as calibrated:
            calibration = gr.Radio(TEXTS, value="bundled", label="Calibration text")
            with gr.Row():
                sequences = gr.Number(16, minimum=1, maximum=1024, precision=0, label="Sequences", min_width=100)
                seed = gr.Number(0, minimum=0, precision=0, label="Seed", min_width=100)
        text = gr.Textbox(label="Your text", lines=4, max_lines=8, max_length=200_000, visible=False, placeholder="At least 512 tokens, about 350 words.")
        kv_bits = gr.Radio([16, 8, 4, 2], value=16, label="KV cache bits", info=KIVI, elem_id="kv")
        head_bits = gr.Radio([16, 8, 4], value=16, label="Output head bits", info="A packed copy; the embedding stays in 16 bits.", elem_id="head")
    read = [evaluation, calibration]
    gr.on([source.change for source in read], lambda *chosen: gr.Textbox(visible="pasted" in chosen), read, text, queue=False,
          trigger_mode="always_last", api_visibility="private")  # fmt: skip
    method.change(lambda name: gr.Column(visible=name in reading), method, calibrated, queue=False, api_visibility="private")
    with gr.Column(elem_id="go"):
        with gr.Row():
            run = gr.Button("Run", variant="primary", elem_id="run", min_width=100, interactive=False)  # until the link has been read
            cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=100)
        shell.status = gr.HTML(status("Recorded results. Change a control and press Run to measure here.", "first"), elem_id="status", padding=False)
    options = dict(zip(RUN_OPTIONS, (evaluation, text, calibration, sequences, seed, kv_bits, head_bits), strict=True))
    shell.panel = Panel(model, method, options, fields)
    return run, cancel


def _boxes(shell: Shell) -> None:
    """Lays out the hidden boxes that every click goes through; fills shell.active, shell.cleared and shell.picks. They come first on the page, because
    gradio's page searches all of it for a component, from the top, several times an event.
    """
    shell.active = gr.Textbox(tabs()[0].name, visible="hidden", elem_id="active")
    shell.cleared = gr.Textbox("", visible="hidden", max_length=20)
    shell.picks = {kind: gr.Textbox("", visible="hidden", max_length=200, elem_id=f"pick-{kind}") for kind in PICKS}  # set by assets/page.js


def _compared(shell: Shell) -> Any:
    """Lays out what all tabs share; fills shell.compared and shell.layer. Gives the line that says whose results these are when Run would measure
    another model.
    """
    compared, layer = shell.shared(shell.shelf.first(), None)
    with gr.Row(elem_id="compared-row"):
        shell.compared = gr.Dropdown(**compared, label=COMPARED, elem_id="compared", scale=8)
        shell.layer = gr.Dropdown(**layer, label="Layer, in all tabs", elem_id="layer", filterable=False, scale=1, min_width=140)
    return gr.HTML("", elem_id="whose", padding=False, visible=False)


def _tabs(shell: Shell) -> dict[str, Any]:
    """Lays out all tabs; fills shell.views and shell.bar. Gives the gr.Tab of each by name."""
    laid: dict[str, Any] = {}
    with gr.Tabs(elem_id="tabs") as shell.bar:
        for tab in tabs():
            with gr.Tab(tab.title, id=tab.name, elem_id=f"tab-{tab.name}") as laid[tab.name]:
                view = tab.build(shell)
            if view is not None:
                shell.views[tab.name] = view
    return laid


def _wire(page: Page, stop: Cancel, run: Any, going: Any, reset: Any, laid: dict[str, Any]) -> None:
    shell = page.shell
    chosen, shown = [shell.compared, shell.layer], [shell.compared, shell.layer, *shell.outputs()]
    asked = [*chosen, shell.active, *shell.controls, *shell.inputs()]
    stop.stops(run.click, again.kept(page, page.run), asked, [shell.status, *shown, going], concurrency_limit=64)
    shell.compared.input(page.choose, [*chosen, shell.active, *shell.inputs()], [shell.status, *shown], **QUIET)
    shell.compared.change(None, shell.compared, shell.cleared, js=CLEARED, api_visibility="private")
    shell.cleared.change(page.cleared, [shell.cleared, shell.layer, shell.active, *shell.inputs()], [shell.status, *shown], **QUIET)
    reset.click(page.reset, [shell.layer, shell.active, *shell.inputs()], [shell.status, *shown], **QUIET)
    picked = shell.picks["layer"]
    shell.layer.input(None, shell.layer, picked, js=ONCE, api_visibility="private")
    picked.change(page.picked, [picked, shell.compared, shell.active, *shell.inputs()], [shell.layer, *shell.outputs()], queue=False, **QUIET)
    for name, tab in laid.items():
        if name in shell.views:
            view = shell.views[name]
            tab.select(partial(page.opened, name), [*chosen, *view.inputs], [shell.active, *view.outputs], **QUIET)
        else:
            tab.select(lambda name=name: name, None, shell.active, queue=False, **QUIET)
