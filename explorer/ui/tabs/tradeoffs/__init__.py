"""Trade-offs: a sweep over methods, bits and groups as a live frontier; any two points told apart by the fewest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from explorer.figures import difference, tradeoffs
from explorer.records import Report
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, fold, heading
from explorer.ui.session import keys_of
from explorer.ui.status import status
from explorer.ui.swept import SWEEP, keeping
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.tradeoffs.handlers import Points, TabState, group_choices, method_choices
from explorer.ui.tabs.tradeoffs.points_table import START
from explorer.ui.tabs.tradeoffs.resumed import came, gone_on, noted
from explorer.vocabulary import term

AXES = [
    ("stored bits", "bits"),
    ("memory", "memory"),
    ("latency", "latency"),
    ("calibration time", "calibration"),
    ("predicted against measured speed", "roofline"),
]
QUALITY = [(term(metric).called, metric) for metric in tradeoffs.QUALITY]
# A point's report opens below the figure, far from a name in the table: the page goes there unless it is in view.
SHOW = """() => setTimeout(() => {
  const card = document.getElementById("point-report"), top = card.getBoundingClientRect().top;
  card.tabIndex = -1;
  card.focus({ preventScroll: true });
  if (top < 0 || top > window.innerHeight / 2) card.scrollIntoView();
}, 50)"""
METHODS, BITS, GROUPS = ["rtn", "hqq"], [2, 3, 4], [64]  # what a new page would sweep
SIZES = [2, 3, 4, 5, 6, 8]  # bits that are offered


def build(shell: Shell) -> View:
    handlers = Points(shell)
    start = TabState().after(shell.shelf.first()).text()
    held = gr.Textbox(start, visible="hidden", elem_id="points")
    where = gr.HTML(handlers.where(start), padding=False, elem_id="points-of")
    fold("Axes of the figure")
    with gr.Row(equal_height=False, elem_classes=["to-bar", "folded"]):
        view = gr.Radio(AXES, value="bits", label="Quality against", min_width=320, scale=2, elem_id="axes")
        quality = gr.Radio(QUALITY, value="kld_mean", label="Quality", min_width=260)
    shell.linked["tradeoffs"] = {"axes": view, "quality": quality}
    plotted = chart(tradeoffs.CHART, handlers.data(start, "bits", "kld_mean"))
    card = gr.HTML(START, elem_id="point-report")
    methods, bits, groups, run, cancel = grid_of(shell)
    line = gr.HTML(handlers.count("demo", METHODS, BITS, GROUPS), padding=False, elem_id="sweep-status")
    table = gr.HTML(handlers.table(start), elem_id="points-table")
    filled = [where, *plotted, table, held]
    asked = [shell.panel.model, methods, bits, groups]
    mark, told = keeping(SWEEP)
    gr.on([control.change for control in asked], partial(came, handlers), [mark, *asked], line, trigger_mode="always_last", **QUIET)
    gr.on([view.input, quality.input], handlers.drawn, [held, view, quality], plotted, trigger_mode="always_last", **QUIET)
    stop = Cancel(status("Cancelled. Run the sweep again to go on."))
    stop.stops(run.click, noted(handlers), [*asked, held, view, quality, *shell.panel.options.values()], [line, *filled, mark], concurrency_limit=16)
    offered = [name for _, name in method_choices(shell.catalogue)], SIZES, [size for _, size in group_choices()]
    stop.stops(told.change, gone_on(handlers, offered), [told, held, view, quality], [line, *filled, mark, methods, bits, groups], concurrency_limit=16)
    stop.by(cancel, line)
    clicked, into = shell.picks["report"], shell.picks["compare"]
    clicked.change(handlers.opened, [clicked, held, shell.compared], card, **QUIET).then(None, None, None, js=SHOW, api_visibility="private")
    shared = [shell.compared, shell.layer]
    into.change(handlers.compared, [into, held, *shared], [line, *shared], **QUIET)
    pair = told_apart(shell, handlers, held, start)

    def render(reports: Sequence[Report], layer: str, held: str, view: str, quality: str, *chosen: str | None) -> list[Any]:
        names = handlers.names(TabState.of(held).after(reports).text(), keys_of(reports))
        known = {key for _, key in names}
        lists = [gr.Dropdown(names, value=value if value in known else None) for value in chosen]
        return [*handlers.arrived(held, view, quality, reports), *lists]

    return View([*filled, card, *pair], render, [held, view, quality, *pair])


def grid_of(shell: Shell) -> tuple[Any, ...]:
    """Lays out the controls of a sweep: (methods, bits, groups, the buttons that run and cancel it)."""
    heading("Sweep", "Choose a grid; every result is drawn as it comes and kept, so a cancelled sweep goes on where it was.")
    with gr.Row(equal_height=False, elem_classes=["to-bar"]):
        methods = gr.Dropdown(
            method_choices(shell.catalogue), value=METHODS, multiselect=True, label="Methods", min_width=300, scale=2, elem_id="sweep-methods"
        )
        bits = gr.CheckboxGroup(SIZES, value=BITS, label="Bits", min_width=220)
        groups = gr.CheckboxGroup(group_choices(), value=GROUPS, label="Groups", min_width=240)
    with gr.Row(elem_classes=["to-bar"]):
        run = gr.Button("Run sweep", variant="primary", min_width=150, elem_id="sweep-run")
        cancel = gr.Button("Cancel", variant="stop", min_width=90, elem_id="sweep-cancel")
    return methods, bits, groups, run, cancel


def told_apart(shell: Shell, handlers: Points, held: Any, start: str) -> list[Any]:
    """Lays out and wires the paired comparison of two configurations; gives the lists of both."""
    first = shell.shelf.first()
    heading("Tell two apart", "Both score the same tokens until the difference, or that there is none, is certain; then it stops.")
    keys = keys_of(first)
    names = handlers.names(start, keys)
    with gr.Row(equal_height=False, elem_classes=["to-bar"]):
        one = gr.Dropdown(names, value=keys[2] if len(keys) > 3 else None, label="First", min_width=220, elem_id="apart-first")
        two = gr.Dropdown(names, value=keys[3] if len(keys) > 3 else None, label="Second", min_width=220, elem_id="apart-second")
    with gr.Row(elem_classes=["to-bar"]):
        run = gr.Button("Tell apart", variant="primary", min_width=150, elem_id="apart-run")
        cancel = gr.Button("Cancel", variant="stop", min_width=90)
    line = gr.HTML(status("Within ±0.5% of perplexity two configurations count as the same."), padding=False, elem_id="apart-status")
    shown = chart(difference.CHART)
    stop = Cancel(status("Cancelled."))
    stop.stops(run.click, handlers.apart, [one, two, held, shell.compared], [line, *shown], concurrency_limit=16)
    stop.by(cancel, line)
    return [one, two]


TAB = Tab("tradeoffs", "Trade-offs", build, order=40)
