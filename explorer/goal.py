"""The Planner's first answer: for the cards one has and one model the widest format that fits, what it leaves, how fast at most, what that width cost where
it was measured, and the command that writes it. In words, which the page and the command line show alike; standard library only.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from explorer.accelerators import COUNTS, UNCOUNTED, Accelerator, Fit, fit, held
from explorer.fallbacks import whole
from explorer.families import Architecture
from explorer.layouts import LLAMA_CPP
from explorer.planner import Plan, gigabytes, need
from explorer.published import PUBLISHED, published
from explorer.records import InputError, QuantSpec, Report, change, significant

DEMO = "demo"
ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?", re.ASCII)
SOURCE = re.compile(rf"(?<!the text part of the )config\.json of ({ID.pattern})", re.ASCII)


@dataclass(frozen=True)
class Width:
    """A format that a card may take: its name, what the plan becomes, the recorded run of that width, and the options of `save` without those at their
    defaults ("": none writes it). least, below: the compute capabilities on which vLLM loads it, by its documentation (see VLLM).
    """

    name: str
    plan: dict[str, int | str | bool]
    run: QuantSpec
    save: str = ""
    least: float = 0.0
    below: float = math.inf


def run(method: str, **params: int | str | bool) -> QuantSpec:
    return QuantSpec.of(method, **params)


# vLLM's documentation, features/quantization as of v0.32: AWQ, GPTQ and INT8 from Turing, FP8 there as weights only, "Turing does not support Marlin MXFP4",
# INT8 "not supported on compute capability >= 10.0". Its table has no AWQ and GPTQ on AMD GPUs, its source (platforms/rocm.py) has both: they are not limited.
VLLM = {"weights": 7.5, "mxfp4": 8.0, "bfloat16": 8.0, "no int8": 10.0}
NO_FLOAT16 = ("gemma2", "gemma3_text")  # families that vLLM refuses in float16, as numerically unstable
PLAIN = run("rtn", granularity="group", rotate=False)  # integers in groups, as GGUF's formats are
NEAR = 0.5  # bits a weight: a recorded run that stores more or fewer says nothing of a width
LOADED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")  # of the counted families those that `save` takes
GGUF = ("llama", "mistral", "qwen2", "qwen3")  # those that it writes as one file for llama.cpp
MXFP4 = Width("MXFP4", {"format": "mxfp4"}, run("mxfp", element="e2m1"), "--method mxfp", VLLM["mxfp4"])  # its blocks divide what groups of 128 do not
Q6_K, Q5_K, Q4_K = (
    Width(name.upper(), {"format": name}, run("kquant", format=name), f"--method kquant {form}--as gguf")
    for name, form in (("q6_k", "--format q6_k "), ("q5_k", "--format q5_k "), ("q4_k", ""))
)  # llama.cpp runs them on any card
GPTQ3, GPTQ2 = (run("gptq", bits=bits, symmetric=True, full_range=False, rotate=False) for bits in (3, 2))
INTEGERS = (
    Q6_K,
    Q5_K,
    Width("AWQ (4-bit g128)", {"format": "awq"}, run("awq", bits=4), "--method awq --group-size 128", VLLM["weights"]),
    MXFP4,
    Width("3-bit g128", {"format": "", "bits": 3, "group": 128, "zeros": False}, GPTQ3, "", VLLM["weights"]),
    Width("2-bit g128", {"format": "", "bits": 2, "group": 128, "zeros": False}, GPTQ2, "", VLLM["weights"]),
)
BF16 = Width("BF16", {"format": "", "bits": 16}, run("none"), "", VLLM["bfloat16"])
FP16 = Width("FP16", {"format": "", "bits": 16}, run("none"), "", VLLM["weights"])  # on cards without bfloat16
FLOAT8 = Width("FP8", {"format": "fp8"}, run("fp8", element="e4m3", granularity="channel"), "--method fp8", VLLM["weights"])
ROWS = {"format": "", "bits": 8, "group": 0, "zeros": False}
INT8 = Width("INT8 (a scale a row)", ROWS, run("absmax"), "--bits 8 --granularity channel", VLLM["weights"], VLLM["no int8"])
FILES = (
    Width("Q8_0", {"format": "", "bits": 8, "group": 32, "zeros": False}, PLAIN, "--method kquant --format q8_0 --as gguf"),
    Q6_K,
    Q5_K,
    Q4_K,
)  # what llama.cpp runs on unified memory


Mark = tuple[str, str]  # (how, text): "b" for what decides, "code" for what is typed, "chip" for how a number came to be
Words = list[str | Mark]
ESTIMATED: Mark = ("chip", "estimated")


class Placement(NamedTuple):
    """A format that the cards hold, the plan in it, and how that lies on them."""

    width: Width
    plan: Plan
    fit: Fit


def widths(card: Accelerator, several: bool = False) -> tuple[Width, ...]:
    """The formats that the usual software loads on a card, or on several that share the work, those of the most bits a weight first."""
    if not card.linked:
        return (BF16, *FILES, *INTEGERS[-2:])
    sixteen, eight = FP16 if no_bfloat16(card) else BF16, FLOAT8 if card.fp8 else INT8
    return tuple(one for one in (sixteen, eight, *INTEGERS) if runs(one, card, several))


def runs(width: Width, card: Accelerator, several: bool = False) -> bool:
    """Whether a width runs on a card that others can be linked to: a GGUF file on one alone, what vLLM loads by the card's compute capability."""
    if width.plan["format"] in LLAMA_CPP:
        return not several
    return card.capability is None or width.least <= card.capability < width.below


def no_bfloat16(card: Accelerator) -> bool:
    return card.capability is not None and card.capability < VLLM["bfloat16"]


def own_width(model: Architecture) -> tuple[Width | None, str]:
    """(the format that a model is published in, None for 16 bits; a sentence where it is quantized in a way that is not counted)."""
    try:
        found = published(model)
    except InputError as error:
        return None, f"{error} It is planned as if it were in 16 bits. "
    if found is None:
        return None, ""
    least = VLLM["mxfp4" if found.layout.title == MXFP4.name else "weights"]
    below = VLLM["no int8"] if found.layout.inputs == "int8" else math.inf
    return Width(found.layout.title, {"format": PUBLISHED, "everything": False}, run("none"), "", least, below), ""


def usual_format(model: Architecture) -> str:
    """The format that a model is planned in where none is asked for: as it is published where that is quantized, else "", integers."""
    return PUBLISHED if own_width(model)[0] else ""


def called(plan: Plan) -> str:
    """The format that a plan asks for, in words."""
    kept = plan.layout()
    return "as published" if plan.format == PUBLISHED else kept.name if kept else "16 bits"


def tried(model: Architecture, plan: Plan, card: Accelerator, several: bool = False) -> list[tuple[Width, Plan]]:
    """Formats and the plan in each, the widest first. What a model is published quantized in comes before all: a wider format would be but a copy of it,
    and does not fit where that does not. On one device llama.cpp loads only MXFP4 of those.
    """
    found, (own, _) = [*widths(card, several)], own_width(model)
    if own and (served(own, model, card) or (own.name == MXFP4.name and not several)):
        found.insert(0, own)
    kept = [one for one in found if one == own or one.plan["format"] in LLAMA_CPP or not card.linked or served(one, model, card)]
    return [(width, dataclasses.replace(plan, **width.plan)) for width in kept]


def served(width: Width, model: Architecture, card: Accelerator) -> bool:
    """Whether vLLM loads a model so on a card, or several: one without bfloat16 takes it in float16, which some families do not bear."""
    return card.linked and runs(width, card, True) and not (no_bfloat16(card) and model.family in NO_FLOAT16)


def placement(model: Architecture, plan: Plan, card: Accelerator, have: int) -> Placement | None:
    """The widest format that fits on so many cards; None where none does. Raises InputError as `held` does."""
    found = (Placement(width, asked, held(model, asked, card, have)) for width, asked in tried(model, plan, card, have > 1))
    return next((one for one in found if one.fit.count), None)


def more(model: Architecture, plan: Plan, card: Accelerator, than: Width | None) -> str:
    """What more cards would bring: on how many a format fits that is wider than one, or any; "" where the widest fits."""
    names = [width for width, _ in tried(model, plan, card)]
    wider = names[: names.index(than)] if than else names
    counts = [(fit(model, asked, card), width.name) for width, asked in tried(model, plan, card, card.linked) if width in wider]
    fewest = min((found.count for found, _ in counts if found.count), default=0)
    if fewest:
        return f"; {fewest} of them hold it in {next(name for found, name in counts if 0 < found.count <= fewest)}"
    if card.linked and not counts and not than:
        return f": it has no bfloat16, and vLLM takes no {model.family} in float16"
    return "" if than else f", nor do {COUNTS[-1]} together" if card.linked else ", and no link joins several"


def shared(one: Fit, have: int) -> str:
    """How the cards hold the weights, in brackets; "" for one card."""
    if have == 1:
        return ""
    copies, idle = one.count // one.together, have - one.count
    how = f"{copies} copies of the weights, {one.together} cards to each"
    if copies == 1:
        how = f"{one.together} share a copy of the weights"
    elif one.together == 1:
        how = "each holds a copy of the weights for its part of the users"
    left = f", {idle} {'stays' if idle == 1 else 'stay'} idle: a copy takes a power of two of cards" if idle else ""
    return f" ({how}{left})"


def nearest(width: Width, bits: float, recorded: Mapping[str, Report]) -> Report | None:
    """The recorded run of a width's kind that stores the nearest to so many bits a weight; None where none is near. What GGUF stores a model in depends
    on its rows, so for its formats the run of that name may be another width, and plain integers in groups are of their kind.
    """
    kinds = [width.run, PLAIN] if width.run.method == "kquant" else [width.run]
    alike = [r for r in recorded.values() if any(r.experiment.spec.method == one.method and set(one.params) <= set(r.experiment.spec.params) for one in kinds)]
    found = min(alike, key=lambda r: abs(r.value("bits_per_weight") - bits), default=None)
    return found if found and abs(found.value("bits_per_weight") - bits) <= NEAR else None


def cost(width: Width, bits: float, recorded: Mapping[str, Report]) -> Words:
    """What a width of so many bits a weight cost where it was recorded; nothing where it was not."""
    found = nearest(width, bits, recorded)
    delta, kld = (found.find(name) if found else None for name in ("perplexity_delta", "kld_mean"))
    if delta is None or kld is None:
        return []
    words, interval = change(delta.value, delta.low, delta.high)
    name = f"{found.name} ({found.value('bits_per_weight'):.2f} bits stored)"
    return [f"{name}, changed perplexity by {words} ({interval}), KL {significant(kld.value)} nats ", ("chip", "recorded")]


def goal(model: Architecture, plan: Plan, card: Accelerator, have: int, recorded: Mapping[str, Report], size: float) -> Words:
    """Two to four sentences. recorded: the survey of the bundled model, of `size` million parameters. Raises InputError as `held` does."""
    found, (own, uncounted) = placement(model, plan, card, have), own_width(model)
    who = f"{model.name} for {plan.users:,} user{'' if plan.users == 1 else 's'} at {plan.context:,} tokens"
    start, one = "One " if have == 1 else f"{have} × ", have == 1
    if found is None:
        no = f" {'does' if one else 'do'} not hold {who} in any format here{more(model, plan, card, None)} "
        return [start, ("b", card.name), no, ESTIMATED, f". {uncounted}"]
    width, asked, way = found
    rest = f"In it {whole(model, asked)}. " if width != own and whole(model, asked) else ""
    free: Words = [f"{gigabytes(way.free)} of what may be filled stay free{'' if one else ' on each'}, "]
    free += [("b", "tight"), f", as {UNCOUNTED}, "] if way.tight else []
    text: Words = [
        start, ("b", card.name), f" hold{'s' * one} {who} in ", ("b", width.name), *loads(model, width, card), f"{shared(way, have)}: ", *free,
        f"and {'it decodes' if one else 'they decode'} at most {way.bound:,.0f} tokens/s in all ", ESTIMATED,
        f"{more(model, plan, card, width)}. {rest}{uncounted}",
    ]  # fmt: skip
    bits = need(model, plan).bits_per_weight
    if own is None and bits > need(model, asked).bits_per_weight and held(model, plan, card, have).count:
        text += [f"The {bits:.3g} bits a weight chosen above fit, too, where something loads them. "]
    return text + quality(model, found, own, recorded, size)


def loads(model: Architecture, width: Width, card: Accelerator) -> Words:
    """What loads a width on a card, and the option that vLLM needs on one without bfloat16."""
    own, by = own_width(model)[0], software(width, card)
    if own == width and card.linked and not served(width, model, card):
        return [" as it is published, which llama.cpp loads there"]
    kind = " as it is published" if own == width else f", the most bits per weight that {by} can load there"
    return [kind, *([" (with ", ("code", "--dtype half"), ": it has no bfloat16)"] if no_bfloat16(card) and by == "vLLM" else [])]


def software(width: Width, card: Accelerator) -> str:
    """What loads a width on a card: llama.cpp a GGUF file, and all on unified memory."""
    return "vLLM" if card.linked and "gguf" not in width.save else "llama.cpp"


def quality(model: Architecture, found: Placement, own: Width | None, recorded: Mapping[str, Report], size: float) -> Words:
    """What the width costs, and how the model comes to it. own: the format that it is published in."""
    width, bits = found.width, need(model, found.plan).bits_per_weight
    if own and width == own:
        return ["Use it as published; more bits would add nothing."]
    if width in (BF16, FP16):
        return [f"It is published in {own.name}, of which this is a wider copy." if own else "No quantization is needed: the weights fit in 16 bits."]
    paid = cost(width, bits, recorded)
    said: Words = [f"It is published in {own.name}, which this rounds once more. "] if own else []
    told = [f"On the bundled {size:.0f} M model the nearest recorded run, ", *paid, "; that says little about a larger one. "]
    said += told if paid else [f"No run that stores about {bits:.2g} bits so is recorded here. "]
    return said + written(model, width)


def written(model: Architecture, width: Width) -> Words:
    """The command that writes a model in a width, or why there is none."""
    if not width.save:
        return ["No format of ", ("code", "save"), " holds such codes."]
    if model.family not in (GGUF if "gguf" in width.save else LOADED):
        return [("code", "save"), f" does not write {model.family} models so: look for a checkpoint that is published in that format."]
    name = loadable(model)
    chosen, where = ("" if name == DEMO else f"--model {name or 'MODEL'} "), "" if name else ", with its hub id or folder for MODEL"
    return [("code", f"python -m explorer save {chosen}{width.save} --to my-model"), f" writes it{where}."]


def loadable(model: Architecture) -> str:
    """The name by which `save` loads a model: the bundled one's, or the hub id that its configuration came from; "" where none is known."""
    came = SOURCE.search(model.source)
    return model.name if model.name == DEMO or ID.fullmatch(model.name) else came[1] if came else ""


def as_text(words: Words) -> str:
    """As a line of text: of a chip its word, in brackets."""
    return "".join(one if isinstance(one, str) else f"({one[1]})" if one[0] == "chip" else one[1] for one in words)
