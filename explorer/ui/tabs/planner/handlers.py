"""Handlers of the Planner tab: an architecture and a few numbers in, bars and a table of accelerators out. Arithmetic only, so all answers are instant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from explorer.accelerators import ACCELERATORS, OWNED, USUAL, Accelerator, fit, widths
from explorer.chips import chip
from explorer.fallbacks import integers
from explorer.families import Architecture, architecture, pasted
from explorer.figures import finite
from explorer.figures.plan import CHART
from explorer.goal import Words, called, goal, own_width, usual_format
from explorer.layouts import LAYOUTS
from explorer.planner import Plan, need
from explorer.presets import presets
from explorer.published import PUBLISHED
from explorer.recorded import on_record
from explorer.records import Answer, InputError
from explorer.ui.frame import chart_values
from explorer.ui.status import failure, status
from explorer.ui.tab import Shell
from explorer.ui.tabs.planner.table import table
from explorer.ui.tabs.planner.words import sentence

FLOAT8 = "fp8"  # among the bits of the cache
CONTEXT, USERS, SHARE = (512, 131072), (1, 256), (5, 100)  # tokens, users and percent that the sliders go from and to
FIRST, DEVICE = "llama-3.1-70b", USUAL


def integer(value: Any, what: str, low: int = 0, high: int = 128) -> int:
    """A box's whole number within its bounds. Raises InputError for any other, an empty box and NaN: what a box shows is what is answered."""
    if not finite(value) or isinstance(value, bool):
        raise InputError(f"{what} needs a number.")
    if value != int(value) or not low <= value <= high:
        raise InputError(f"{what} takes a whole number from {low:,} to {high:,}, not {value:,.10g}.")
    return int(value)


def as_typed(control: Any) -> Any:
    """A number box or slider whose value comes as it was typed, None where that is empty: what is out of bounds is answered with a sentence. Gradio would
    refuse it, and the answer of the number before would stay.
    """
    control.preprocess = lambda value: value if finite(value) else None
    return control


class Inputs(NamedTuple):
    """The tab's controls in their order, or their values; all but config by the names that a link has. config: pasted, "" for the model of this name.
    kv_bits: "fp8" is float8. price: of one device, $ an hour, None the list price, 0 free. reached: percent of the bound. format: "" is integers of the bits
    and groups. cards: that one has.
    """

    model: Any
    config: Any
    bits: Any
    group: Any
    everything: Any
    kv_bits: Any
    context: Any
    users: Any
    device: Any
    price: Any
    reached: Any
    format: Any
    cards: Any


class Plans:
    """Handlers of the tab over the shell. Values are as a browser sends them: anything."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def model(self, preset: str, config: str) -> Architecture:
        """The pasted architecture where there is one, else the preset. Raises InputError."""
        if config and config.strip():
            return pasted(config)
        if preset not in presets():
            raise InputError("Choose an architecture from the list, or paste a config.json.")
        return presets()[preset]

    def read(self, asked: Inputs) -> tuple[Architecture, Plan, Accelerator, float]:
        """(architecture, plan, accelerator, share of the bound). Raises InputError."""
        chosen = next((one for one in ACCELERATORS if one.name == asked.device), None)
        if chosen is None:
            raise InputError("Choose an accelerator from the list.")
        float8 = asked.kv_bits == FLOAT8
        plan = Plan(
            bits=integer(asked.bits, "Bits"),
            group=integer(asked.group, "The group"),
            kv_bits=integer(8 if float8 else asked.kv_bits, "KV bits"),
            context=integer(asked.context, "Context", *CONTEXT),
            users=integer(asked.users, "Users", *USERS),
            everything=bool(asked.everything),
            format=asked.format or "",
            kv_float=float8,
        )
        return self.model(asked.model, asked.config), plan, chosen, integer(asked.reached, "The share", *SHARE) / 100

    def told(self, asked: Inputs) -> tuple[str, float]:
        """(the answer in words, the model's parameters). Raises InputError."""
        model, plan, chosen, share = self.read(asked)
        return sentence(model, plan, need(model, plan), fit(model, plan, chosen, asked.price, share), share), model.parameters

    def solved(self, *values: Any) -> list[Any]:
        """[first answer and status, table, chart, words]. values: of Inputs."""
        asked = Inputs(*values)
        try:
            model, plan, chosen, share = self.read(asked)
            have = integer(asked.cards, "The number of cards", 1, OWNED)
            first_of_all = self.first_answer(model, plan, chosen, have)
            fits = [fit(model, plan, one, asked.price if one is chosen else None, share) for one in ACCELERATORS]
            drawn, said = chart_values(CHART, bars(model, plan, chosen)), f"In the format set above ({called(plan)}): {self.told(asked)[0]}"
        except InputError as error:
            return [status(str(error), "error"), *[gr.skip()] * 3]
        return [first_of_all + status(said, "done", chips=chip("estimated")), table(fits, chosen.name, plan, share), *drawn]

    def first_answer(self, model: Architecture, plan: Plan, chosen: Accelerator, have: int) -> str:
        """For the cards one has, as HTML; of accelerators that no link joins for one, and it says so."""
        alone = have > 1 and not chosen.linked
        words = goal(model, plan, chosen, 1 if alone else have, on_record(), presets()["demo"].parameters / 1e6)
        return spelt([*words, f" No link joins several {chosen.name}, so this is for one."] if alone else words)

    def form(self, preset: str, config: str, form: str) -> Any:
        """The format when a model is chosen: as published where that is quantized, and not where it is not. What is no model changes nothing."""
        try:
            usual = usual_format(self.model(preset, config))
        except InputError:
            return gr.skip()
        return usual if usual or form == PUBLISHED else gr.skip()

    def fetched(self, name: str) -> Iterator[list[Any]]:
        """[config text, status] of a model by name, through the runner."""
        try:
            for event in self.shell.runner.do("architecture", {"model": name or ""}):
                if isinstance(event, Answer):
                    config = {**event.data["config"], "_name_or_path": name.strip()}  # what it says itself may be its author's folder
                    found = architecture(config)
                    yield [json.dumps(config, indent=1), status(f"{found.name}: {found.parameters / 1e9:.3f} billion parameters.", "done")]
                else:
                    yield [gr.skip(), status("Reading the configuration.", "busy")]
        except Exception as error:  # the outermost boundary: whoever pressed gets a sentence
            yield [gr.skip(), failure(error)]


def spelt(words: Words) -> str:
    """Words of the first answer as HTML; they are escaped here."""
    marked = (one if isinstance(one, tuple) else ("", one) for one in words)
    return f"<p class='see'>{''.join(chip(text) if how == 'chip' else f'<{how}>{escape(text)}</{how}>' if how else escape(text) for how, text in marked)}</p>"


def bars(model: Architecture, plan: Plan, chosen: Accelerator) -> dict[str, Any]:
    """The data of the chart: the compared widths, with the plan's own where it is none of them, and the one that a quantized checkpoint has."""
    shown, (own, _) = widths(model, plan), own_width(model)
    if plan.format in LAYOUTS or (not plan.format and plan.bits not in (16, 8, 4, 3, 2)):
        shown.insert(1, (LAYOUTS[plan.format].title.split(",")[0] if plan.format else f"INT{plan.bits}", need(model, plan)))
    if own:
        shown.insert(1, (PUBLISHED, need(model, dataclasses.replace(plan, **own.plan))))
    parts = [{"name": name, "parts": {**one.weights, "KV cache": one.kv, "activations": one.activations}} for name, one in shown]
    return {"model": model.name, "bars": parts, "device": {"name": chosen.name, "bytes": chosen.bytes()}, "note": integers(model, plan)}


def price_of(device: str) -> Any:
    """The list price of a device, or nothing where none is known."""
    return next((one.price for one in ACCELERATORS if one.name == device), None)


def follows(own: Mapping[str, Any]) -> dict[str, Any]:
    """What price and format are where nothing else is set, by the model and device that are (by name, as a link has them; those at their start left out)."""
    integers = {"bits", "group", "everything"} & set(own)
    return {"price": price_of(own.get("device", DEVICE)), "format": "" if integers else usual_format(presets()[own.get("model", FIRST)])}


def first() -> Inputs:
    """The values of a new page's controls."""
    plan = dataclasses.replace(Plan(), bits=4, users=10)
    return Inputs(FIRST, "", plan.bits, plan.group, False, plan.kv_bits, plan.context, plan.users, DEVICE, price_of(DEVICE), reached=50, format="", cards=1)
