"""Planner: what an architecture of the counted families needs, which accelerators hold it, for how many users, how fast at most and at what price."""

from __future__ import annotations

from typing import Any

import gradio as gr

from explorer.accelerators import ACCELERATORS, OWNED
from explorer.families import FAMILIES, TEXT_LIMIT
from explorer.figures.plan import CHART
from explorer.layouts import LAYOUTS
from explorer.presets import presets
from explorer.published import PUBLISHED
from explorer.ui.frame import chart, fold, heading
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.planner.handlers import CONTEXT, FLOAT8, SHARE, USERS, Inputs, Plans, as_typed, bars, first, follows, price_of

FORMATS = [("integers: bits, group", ""), ("as published", PUBLISHED), *((kept.title, name) for name, kept in LAYOUTS.items())]
# A link sets many controls, each of which tells: they are answered once, when all are set.
TOGETHER = """async () => {
  window.planChanged = Date.now();
  await new Promise((done) => setTimeout(done, 60));
  return String(window.planChanged);
}"""


def another() -> tuple[gr.Textbox, gr.Button, gr.Textbox]:
    """The controls that take a model which is not in the list: (name, button that reads its configuration, text of the configuration)."""
    with gr.Accordion("Another model: by name or pasted config.json", open=False, elem_classes=["folded"]):
        with gr.Row(equal_height=False, elem_classes=["pl-bar"]):
            name = gr.Textbox(label="Hub id or folder", max_length=200, min_width=240, placeholder="organisation/model")
            fetch = gr.Button("Read its configuration", min_width=180)
        families = f"config.json of one of these families: {', '.join(FAMILIES)}"
        config = gr.Textbox(label=families, lines=4, max_lines=10, max_length=TEXT_LIMIT, placeholder="Paste here; empty it to go back to the list above.")
    return name, fetch, config


def hardware(start: Inputs) -> tuple[Any, ...]:
    """The controls of what it runs on: (accelerator, cards one has, price, share of the bound). start: as `first` gives it."""
    with gr.Row(equal_height=False, elem_classes=["pl-bar", "folded"]):
        device = gr.Dropdown([one.name for one in ACCELERATORS], value=start.device, label="Accelerator", min_width=200, filterable=False, scale=4)
        cards = as_typed(
            gr.Number(start.cards, label="Cards you have", minimum=1, maximum=OWNED, step=1, precision=0, scale=2, min_width=140, elem_id="plan-cards")
        )  # fmt: skip
        price = as_typed(
            gr.Number(
                start.price, label="Price of one, $ an hour", minimum=0, maximum=10_000, min_width=180, scale=3, elem_id="plan-price",
                info="0: free; empty: the list price.",
            )
        )  # fmt: skip
        reached = as_typed(
            gr.Slider(*SHARE, start.reached, step=5, label="Share of the bound, %", min_width=220, scale=5, info="Public runs on an H100 reach 27 to 67.")
        )
    return device, cards, price, reached


def settled(form: str) -> list[dict]:
    """Updates of bits, group and "embedding and head too": what a format settles cannot be chosen."""
    whole = gr.update(interactive=False, value=False) if form == PUBLISHED else gr.update(interactive=True)
    return [*[gr.update(interactive=not form)] * 2, whole]


def build(shell: Shell) -> View | None:
    handlers, start = Plans(shell), first()
    heading(
        "What do I buy?",
        "What a model needs, where it fits and what a token costs, from its configuration alone. All numbers are estimates; only counts of weights are exact.",
    )
    fold("Model, format, users, cards")
    with gr.Row(equal_height=False, elem_classes=["pl-bar", "folded"]):
        choices = [(f"{name} ({model.parameters / 1e9:.3g} B)", name) for name, model in presets().items()]
        preset = gr.Dropdown(choices, value=start.model, label="Architecture", min_width=240, elem_id="plan-model")
        form = gr.Dropdown(FORMATS, value=start.format, label="Format", min_width=220, filterable=False, elem_id="plan-format")
        bits = gr.Radio([16, 8, 6, 5, 4, 3, 2], value=start.bits, label="Weight bits", min_width=320)
        group = gr.Radio([("channel", 0), ("32", 32), ("64", 64), ("128", 128)], value=start.group, label="Group", min_width=260)
    with gr.Row(equal_height=False, elem_classes=["pl-bar", "folded"]):
        context = as_typed(gr.Slider(*CONTEXT, start.context, step=512, label="Context, tokens", min_width=240, elem_id="plan-context"))
        users = as_typed(gr.Slider(*USERS, start.users, step=1, label="Users at once", min_width=240))
        kv_bits = gr.Radio([16, ("FP8", FLOAT8), 8, 4, 2], value=start.kv_bits, label="KV cache bits", min_width=220)
        everything = gr.Checkbox(start.everything, label="Embedding and head too", info="Most checkpoints keep them in 16 bits.", min_width=260)
    device, cards, price, reached = hardware(start)
    name, fetch, config = another()
    asked = Inputs(preset, config, bits, group, everything, kv_bits, context, users, device, price, reached, form, cards)
    shell.planned = [*asked]
    shell.linked["planner"] = {name: part for name, part in asked._asdict().items() if name != "config"}
    shell.follows["planner"] = follows
    words, fits, *_ = handlers.solved(*start)
    line = gr.HTML(words, padding=False, elem_id="plan-status")
    drawn = chart(CHART, bars(*handlers.read(start)[:3]))
    heading("Where it fits", "See which rows need a single device, and how few users are left where the weights only just fit.")
    outputs = [line, gr.HTML(fits, elem_id="plan-table"), *drawn]
    changed = gr.Textbox("", visible="hidden")
    gr.on([control.change for control in asked], None, None, changed, js=TOGETHER, api_visibility="private")
    changed.change(handlers.solved, [*asked], outputs, trigger_mode="always_last", **QUIET)
    preset.input(lambda name, form: ("", handlers.form(name, "", form)), [preset, form], [config, form], queue=False, **QUIET)
    config.change(handlers.form, [preset, config, form], form, queue=False, **QUIET)
    form.change(settled, form, [bits, group, everything], queue=False, **QUIET)
    device.input(price_of, device, price, queue=False, **QUIET)
    fetch.click(handlers.fetched, name, [config, line], concurrency_limit=8, **QUIET)
    return None


TAB = Tab("planner", "Planner", build, order=70)
