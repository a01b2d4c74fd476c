"""The Planner's first answer: for one card and one model the widest format that fits, what it leaves, how fast at most, what that width cost where it was
measured, and the command that writes it. HTML; all texts are escaped here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from explorer.accelerators import Accelerator, fit, on_each
from explorer.chips import chip
from explorer.families import Architecture
from explorer.planner import Plan, gigabytes, need
from explorer.records import QuantSpec, Report, change, significant

DEMO = "demo"
ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?", re.ASCII)
SOURCE = re.compile(rf"(?<!the text part of the )config\.json of ({ID.pattern})", re.ASCII)
OWN = "the {:.0f} M model that ships with this page alone, which says little about a larger one"


@dataclass(frozen=True)
class Width:
    """A format that a card may take: its name, what the plan becomes, the recorded run of that width, and the options of `save` without those at their
    defaults ("": none writes it).
    """

    name: str
    plan: dict[str, int | str | bool]
    run: QuantSpec
    save: str = ""


def run(method: str, **params: int | str | bool) -> QuantSpec:
    return QuantSpec.of(method, **params)


LOADED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")  # of the counted families those that `save` takes
GGUF = ("llama", "mistral", "qwen2", "qwen3")  # those that it writes as one file for llama.cpp
MXFP4 = Width("MXFP4", {"format": "mxfp4"}, run("mxfp", element="e2m1"), "--method mxfp")  # its blocks divide what groups of 128 do not
Q6_K, Q5_K, Q4_K = (
    Width(name.upper(), {"format": name}, run("kquant", format=name), f"--method kquant {form}--as gguf")
    for name, form in (("q6_k", "--format q6_k "), ("q5_k", "--format q5_k "), ("q4_k", ""))
)  # llama.cpp runs them on any card
INTEGERS = (
    Q6_K,
    Q5_K,
    Width("AWQ (4-bit g128)", {"format": "awq"}, run("awq", bits=4), "--method awq --group-size 128"),
    MXFP4,
    Width("3-bit g128", {"format": "", "bits": 3, "group": 128, "zeros": False}, run("gptq", bits=3, symmetric=True, full_range=False, rotate=False)),
    Width("2-bit g128", {"format": "", "bits": 2, "group": 128, "zeros": False}, run("gptq", bits=2, symmetric=True, full_range=False, rotate=False)),
)
WHOLE = Width("BF16", {"format": "", "bits": 16}, run("none"))
FLOAT8 = Width("FP8", {"format": "fp8"}, run("fp8", element="e4m3", granularity="channel"), "--method fp8")
INT8 = Width("INT8 (a scale a row)", {"format": "", "bits": 8, "group": 0, "zeros": False}, run("absmax"), "--bits 8 --granularity channel")
FILES = (
    Width("Q8_0", {"format": "", "bits": 8, "group": 32, "zeros": False}, run("absmax"), "--method kquant --format q8_0 --as gguf"),
    Q6_K,
    Q5_K,
    Q4_K,
)  # what llama.cpp runs on unified memory


def widths(card: Accelerator) -> tuple[Width, ...]:
    """The formats that a card's usual software loads, the widest first."""
    return (WHOLE, *FILES, *INTEGERS[-2:]) if not card.linked else (WHOLE, FLOAT8 if card.fp8 else INT8, *INTEGERS)


def cost(width: Width, recorded: Mapping[str, Report]) -> str:
    """What a width cost where it was recorded, with the letter of a recorded number; "" where it was not."""
    alike = [r for r in recorded.values() if r.experiment.spec.method == width.run.method]
    found = next((r for r in alike if set(width.run.params) <= set(r.experiment.spec.params)), None)
    delta, kld = (found.find(name) if found else None for name in ("perplexity_delta", "kld_mean"))
    if delta is None or kld is None:
        return ""
    words, interval = change(delta.value, delta.low, delta.high)
    name = f"{escape(found.name)} ({found.value('bits_per_weight'):.2f} bits stored)"
    return f"{name} changed perplexity by {words} ({interval}), KL {significant(kld.value)} nats {chip('recorded')}"


def goal(model: Architecture, plan: Plan, card: Accelerator, recorded: Mapping[str, Report], size: float) -> str:
    """Two or three sentences above the table. recorded: the survey of the bundled model, of `size` million parameters."""
    tried = [(width, dataclasses.replace(plan, **width.plan)) for width in widths(card)]
    fits = [(width, asked, fit(model, asked, card)) for width, asked in tried]
    one = next(((w, asked, found) for w, asked, found in fits if found.count == 1), None)
    who, name = f"{plan.users:,} user{'' if plan.users == 1 else 's'} at {plan.context:,} tokens", f"<b>{escape(card.name)}</b>"
    mark = chip("estimated")
    if one is None:
        fewest = min((found.count for *_, found in fits if found.count), default=0)
        none = f", nor do {fits[-1][2].most} together" if card.linked else ", and no link joins several"
        more = f"; with {fewest} of them the widest that fits is {widest(fits, fewest)}" if fewest else none
        return f"<p class='see'>One {name} does not hold {escape(model.name)} for {who} in any format here{more} {mark}.</p>"
    width, asked, found = one
    left = card.bytes() - on_each(model, asked, need(model, asked), 1)
    text = (
        f"On one {name} the widest format of those that its usual software loads in which {escape(model.name)} fits for {who} is "
        f"<b>{escape(width.name)}</b>: {gigabytes(left)} of what may be filled stay free, and it decodes at most {found.bound:,.0f} tokens/s in all {mark}. "
    )
    if need(model, plan).bits_per_weight > need(model, asked).bits_per_weight and fit(model, plan, card).count == 1:
        text += f"The {need(model, plan).bits_per_weight:.3g} bits a weight chosen above fit, too, where something loads them. "
    if width is WHOLE:
        return f"<p class='see'>{text}Nothing need be quantized: the weights fit in 16 bits.</p>"
    paid = cost(width, recorded)
    text += f"The nearest recorded run of that width, {paid}: evidence from {OWN.format(size)}. " if paid else "That width was not recorded here. "
    return f"<p class='see'>{text}{written(model, width)}</p>"


def written(model: Architecture, width: Width) -> str:
    """The command that writes a model in a width, or why there is none."""
    if not width.save:
        return "No format of <code>save</code> holds such codes."
    if model.family not in (GGUF if "gguf" in width.save else LOADED):
        return f"<code>save</code> does not write {escape(model.family)} models so: look for a checkpoint that is published in that format."
    name = loadable(model)
    chosen, where = ("" if name == DEMO else f"--model {escape(name or 'MODEL')} "), "" if name else ", with its hub id or folder for MODEL"
    return f"<code>python -m explorer save {chosen}{width.save} --to my-model</code> writes it{where}."


def loadable(model: Architecture) -> str:
    """The name by which `save` loads a model: the bundled one's, or the hub id that its configuration came from; "" where none is known."""
    came = SOURCE.search(model.source)
    return model.name if model.name == DEMO or ID.fullmatch(model.name) else came[1] if came else ""


def widest(fits: list, count: int) -> str:
    """The name of the first format that needs no more than `count` cards."""
    return next(escape(width.name) for width, _, found in fits if 0 < found.count <= count)
