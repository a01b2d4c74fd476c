"""Handlers of the Planner tab: an architecture and a few numbers in, bars and a table of accelerators out. Arithmetic only, so all answers are instant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import gradio as gr

from explorer.accelerators import ACCELERATORS, OWNED, USUAL, Accelerator, Fit, fit, widths
from explorer.chips import chip, reachable
from explorer.families import Architecture, architecture, pasted
from explorer.figures import finite
from explorer.figures.plan import CHART
from explorer.goal import Words, called, goal, own_width, usual_format
from explorer.layouts import LAYOUTS
from explorer.planner import Need, Plan, gigabytes, layout_of, matrix_bits, need
from explorer.presets import presets
from explorer.published import PUBLISHED, published
from explorer.recorded import on_record
from explorer.records import Answer, InputError
from explorer.ui.frame import chart_values
from explorer.ui.status import failure, many, status
from explorer.ui.tab import Shell

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


class Plans:
    """`asked` are the values of the tab's controls: preset, config, bits, group, everything, KV bits ("fp8": float8), context, users, device, price
    (None: the list price, 0: free), share, format ("": integers of the bits and groups), cards one has.
    """

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def model(self, preset: str, config: str) -> Architecture:
        """The pasted architecture where there is one, else the preset. Raises InputError."""
        if config and config.strip():
            return pasted(config)
        if preset not in presets():
            raise InputError("Choose an architecture from the list, or paste a config.json.")
        return presets()[preset]

    def read(self, *asked: Any) -> tuple[Architecture, Plan, Accelerator, float]:
        """(architecture, plan, accelerator, share of the bound). Raises InputError."""
        preset, config, bits, group, everything, kept, context, users, device, _, reached, form, _ = asked
        chosen = next((one for one in ACCELERATORS if one.name == device), None)
        if chosen is None:
            raise InputError("Choose an accelerator from the list.")
        kv_bits = 8 if kept == FLOAT8 else kept
        widths = [integer(value, what) for value, what in ((bits, "Bits"), (group, "The group"), (kv_bits, "KV bits"))]
        plan = Plan(
            *widths, integer(context, "Context", *CONTEXT), integer(users, "Users", *USERS), everything=bool(everything), format=form or "",
            kv_float=kept == FLOAT8,
        )  # fmt: skip
        return self.model(preset, config), plan, chosen, integer(reached, "The share", *SHARE) / 100

    def told(self, *asked: Any) -> tuple[str, float]:
        """(the answer in words, the model's parameters). Raises InputError."""
        model, plan, chosen, share = self.read(*asked)
        return sentence(model, plan, need(model, plan), fit(model, plan, chosen, asked[9], share), share), model.parameters

    def solved(self, *asked: Any) -> list[Any]:
        """[first answer and status, table, chart, words]."""
        try:
            model, plan, chosen, share = self.read(*asked)
            have = integer(asked[12], "The number of cards", 1, OWNED)
            first_of_all = self.first_answer(model, plan, chosen, have)
            fits = [fit(model, plan, one, asked[9] if one is chosen else None, share) for one in ACCELERATORS]
            drawn, said = chart_values(CHART, bars(model, plan, chosen)), f"In the format set above ({called(plan)}): {self.told(*asked)[0]}"
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
    left = whole(model, dataclasses.replace(plan, bits=4, group=plan.group or 128, format=""))
    note = f"In INT4 and below{left.removeprefix(';')}." if left else ""
    return {"model": model.name, "bars": parts, "device": {"name": chosen.name, "bytes": chosen.bytes()}, "note": note}


def width(model: Architecture, plan: Plan, found: Need) -> str:
    """In which width the weights are stored, in words; nothing for 16 bits."""
    own = published(model) if plan.format == PUBLISHED else None
    kept = own.layout if own else plan.layout()
    if kept is None:
        return " (as published, in 16 bits)" if plan.format else ""
    outside = [] if plan.everything else ["embedding"] if model.tied or (own and own.head) else ["embedding", "head"]
    replaced = kept.fallback is not None and any(one.inputs % kept.block for one in model.matrices())
    name = f"{kept.title}{f', {kept.fallback.title} where {kept.block} does not divide a row' if replaced else ''}: " if plan.format else ""
    rest = f"; {' and '.join(outside)} in 16" if outside else ""
    return f" ({'as published, ' if own else ''}{name}{found.bits_per_weight:.3f} bits a weight{rest}{whole(model, plan)})"


def whole(model: Architecture, plan: Plan) -> str:
    """How much of the layers stays in 16 bits, and where groups or blocks do not divide their rows which rows; "" where none does."""
    stay = [one for one in model.matrices() if matrix_bits(model, plan, one) == 16 * one.parameters]
    if not stay:
        return ""
    share, rows = sum(one.parameters for one in stay) / sum(one.parameters for one in model.matrices()), sorted({one.inputs for one in stay})
    kept = layout_of(model, plan, stay[0])
    why = f", because {kept.block} does not divide rows of {' and '.join(f'{k:,}' for k in rows)}" if kept else ""
    return f"; {share:.0%} of the layers' weights stay in 16{why}"


def asked_for(model: Architecture, plan: Plan, found: Need) -> str:
    """What the plan needs, in words."""
    kind = f" and uses {model.active} of {model.experts} experts a token" if model.experts > 1 else ""
    text = (
        f"{model.name} has {model.parameters / 1e9:,.3f} billion parameters{kind}. Weights {gigabytes(found.weight_bytes)}{width(model, plan, found)}, "
        f"KV cache {gigabytes(found.kv_user)} a user at {many(plan.context, 'token')}, {gigabytes(found.kv)} for {plan.users:,}, "
        f"activations {gigabytes(found.activations)}. "
    )
    if model.window and plan.context > model.window:
        where = "" if model.windowed == model.layers else f" in {model.windowed} of {model.layers} layers"
        text += f"Attention looks back {model.window:,} tokens{where}, so the cache stops growing there. "
    if model.context and plan.context > model.context:
        text += f"The model was made for {model.context:,} tokens. "
    return text


def sentence(model: Architecture, plan: Plan, found: Need, chosen: Fit, share: float) -> str:
    """The answer in words. share: of the bound, that the price of a token is for."""
    text, name = asked_for(model, plan, found), chosen.accelerator.name
    if not chosen.count:
        why = "" if chosen.accelerator.linked else ", and no link joins them"
        return f"{text}More than {chosen.most} × {name} would be needed{why}."
    text += f"It needs {chosen.count} × {name}{groups(chosen)}, which then hold{'s' if chosen.count == 1 else ''} {many(chosen.users, 'user')}; "
    busy = "memory bandwidth" if chosen.limit == "bandwidth" else "compute"
    text += f"it decodes at most {chosen.bound:,.0f} tokens/s in all, bound by {busy} (estimated bound)"
    if chosen.dollars is None:
        return f"{text}. Give a price to see what a token costs."
    return (
        f"{text}, ${chosen.dollars:,.2f} a million decoded tokens at {share:.0%} of that bound and ${chosen.dollars_hour:,.2f} an hour; "
        f"a million tokens of prompt cost another ${chosen.prompt_dollars:,.2f}."
    )


def groups(one: Fit) -> str:
    """How many copies of the weights the devices hold, where it is more than one."""
    return "" if one.together == one.count else f" ({one.count // one.together} copies of the weights, each on {one.together})"


HEADS = (
    "accelerator",
    "needed",
    "users that fit",
    "decoded tokens/s, at most",
    "$ a million tokens, decoded + prompt, at {share}",
    "$ an hour",
    "tokens/s, each user",
    "prompt tokens/s, at most",
    "memory, GB",
    "GB/s",
    "TFLOP/s, 16 bits",
    "FP8, FP4 units",
)  # what decides comes first: a narrow page shows no more
SHEET = 8  # where the columns begin that a data sheet says
NOTE = (
    "Estimated: memory, bandwidth and dense 16-bit compute are those of data sheets (the source is under each name). A driver reports less memory than the "
    "name says (79.1 GiB of 80 GB, 14.6 GiB of a T4's 16 GB); 90% of that may be filled, of unified memory 75%, on small machines 67%. Devices are counted in "
    "powers of two. They share a model by tensor parallelism, which divides the cache by key and value heads and copies it beyond, or each group of them "
    "holds a copy of the weights for some of the users, whichever has the higher bound. The bound on decoded tokens/s counts the time to read weights and "
    "cache, or to multiply in 16 bits, whichever is longer (named beside it), and nothing else: no transfer between devices, no gaps. Formats that multiply "
    "in 8 bits (W8A8) can pass a bound by compute, at most twice, in 4 bits (W4A4, where FP4 is named) by more. Prompt tokens/s are bound by compute alone. A "
    "million tokens are priced at {share} of the bounds, the share set above: first decoded ones, then those of prompts. Prices are public list prices of the "
    "date under the name; what is bought has none. Computers with unified memory are counted once, because no link joins several."
)


def cells(one: Fit, plan: Plan) -> list[str]:
    """A row of the table, without its name."""
    a = one.accelerator
    sheet = [f"{a.memory:,}", f"{a.bandwidth:,}", f"{a.compute:,}", "&nbsp;".join([*["FP8"] * a.fp8, *["FP4"] * a.fp4]) or "none"]
    if not one.count:
        return [f"more than {one.most}", *[""] * 6, *sheet]
    needed = f"{one.count}" if one.together == one.count else f"{one.count} = {one.count // one.together}&nbsp;×&nbsp;{one.together}"
    busy = "read" if one.limit == "bandwidth" else "compute"
    price = ["", ""] if one.dollars_hour is None else [f"{one.dollars:,.2f}&nbsp;+&nbsp;{one.prompt_dollars:,.2f}", f"{one.dollars_hour:,.2f}"]
    return [needed, f"{one.users:,}", f"{one.bound:,.0f}&nbsp;({busy})", *price, f"{one.bound / plan.users:,.1f}", f"{one.prompt:,.0f}", *sheet]


def table(fits: list[Fit], chosen: str, plan: Plan, share: float) -> str:
    """The accelerators as HTML. share: as in `sentence`."""
    rows = []
    for one in fits:
        a = one.accelerator
        mark = " class='chosen'" if a.name == chosen else ""
        rows.append(
            f"<tr{mark}><th scope='row' title='{escape(a.source, quote=True)}'>{escape(a.name)}</th>"
            + "".join(f"<td>{cell}</td>" for cell in cells(one, plan))
            + "</tr>"
        )
    note = NOTE.format(share=f"{share:.0%}")
    sheet, sums = (chip("estimated", f"{how}, not measured", reached=False) for how in ("from the data sheet under each name", note))
    heads = [head.format(share=f"{share:.0%}") for head in HEADS]
    head = "".join(f"<th scope='col'>{name} {sheet if i >= SHEET else sums if i else ''}</th>" for i, name in enumerate(heads))
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll' tabindex='0'><table class='compare plan'>{reachable(body)}</table></div><p class='hint'>{note}</p>"


def price_of(device: str) -> Any:
    """The list price of a device, or nothing where none is known."""
    return next((one.price for one in ACCELERATORS if one.name == device), None)


def follows(own: Mapping[str, Any]) -> dict[str, Any]:
    """What price and format are where nothing else is set, by the model and device that are (by name, as a link has them; those at their start left out)."""
    integers = {"bits", "group", "everything"} & set(own)
    return {"price": price_of(own.get("device", DEVICE)), "format": "" if integers else usual_format(presets()[own.get("model", FIRST)])}


def first() -> list[Any]:
    """The values of a new page's controls."""
    plan = dataclasses.replace(Plan(), bits=4, users=10)
    return [FIRST, "", plan.bits, plan.group, False, plan.kv_bits, plan.context, plan.users, DEVICE, price_of(DEVICE), 50, "", 1]
