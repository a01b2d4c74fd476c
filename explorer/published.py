"""How a published checkpoint stores its weights, by the quantization_config of its configuration. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from explorer.families import Architecture, Matrix
from explorer.layouts import LAYOUTS, Layout
from explorer.records import InputError

PUBLISHED = "published"  # the format of a checkpoint as it is
LAYERS, MATCHES, LONGEST = 1000, 5000, 200  # layers, those times patterns of modules, characters of a name: a configuration with more is not read
LINEARS = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "query down": "q_a_proj", "latent": "kv_a_proj_with_mqa",
    "key and value": "kv_b_proj", "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
FUSED = {"phi3": {"query": "qkv_proj", "key": "qkv_proj", "value": "qkv_proj", "gate": "gate_up_proj", "up": "gate_up_proj"},
         "gpt_oss": {"gate": "gate_up_proj", "up": "gate_up_proj"}, "mixtral": {"gate": "w1", "down": "w2", "up": "w3"}}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """How a quantized checkpoint stores the matrices inside the blocks: in `layout`, but those named in `whole`, which are in 16 bits. head: whether the
    output head is in that layout as well. All else is in 16 bits.
    """

    layout: Layout
    whole: frozenset[str] = frozenset()
    head: bool = False

    def of(self, one: Matrix) -> Layout | None:
        return None if one.name in self.whole else self.layout


Read = tuple[Layout, list[str], bool]  # the layout, names of modules that stay in 16 bits, whether the head is quantized unless it is among them


def published(model: Architecture) -> Published | None:
    """How a model's checkpoint stores its weights; None where it is in 16 bits. Raises InputError where it is quantized in a way that is not counted."""
    found = read(model)
    if isinstance(found, str):
        raise InputError(found)
    return found


@lru_cache(64)
def read(model: Architecture) -> Published | str | None:
    """The same, with the sentence for one that is not counted."""
    if not model.quantization:
        return None
    said = json.loads(model.quantization)
    name = said.get("quant_method") if isinstance(said, dict) else None
    try:
        layout, names, head = METHODS[name](said)
        kept = Unquantized(names, model.layers)
        whole = {one.name for one in model.matrices() if (name == "mxfp4" and not one.routed) or kept.holds(paths(model, one))}
        if all(one.name in whole for one in model.matrices()):
            raise ValueError("nothing would be quantized")
    except (LookupError, TypeError, ValueError, AttributeError):
        return f"{model.name} is published quantized{f' ({name[:30]})' if isinstance(name, str) else ''} in a way that is not counted."
    return Published(layout, frozenset(whole), head and not kept.holds(["lm_head"]))


def listed(said: dict[str, Any], *keys: str) -> list[str]:
    """The first list of names that a configuration has under one of the keys. Raises TypeError for what is none."""
    found = next((said[key] for key in keys if said.get(key)), [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError("no list of names")
    return found


def natural(value: Any, *allowed: int) -> int:
    """A whole number, one of those allowed where some are named. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**6 or (allowed and value not in allowed):
        raise ValueError("no such number")
    return value


def grouped(value: Any) -> int:
    """A group's size; 0 for -1, which is the whole row."""
    return 0 if value == -1 else natural(value)


def titled(name: str, bits: int, group: int) -> str:
    return f"{name}, {bits}-bit {f'g{group}' if group else 'rows'}"


def mxfp4(said: dict[str, Any]) -> Read:
    return LAYOUTS["mxfp4"], listed(said, "modules_to_not_convert"), False


def fp8(said: dict[str, Any]) -> Read:
    """With a float32 scale a block, or a matrix, and another for its inputs where those are fixed."""
    whole, block = listed(said, "modules_to_not_convert", "ignored_layers"), said.get("weight_block_size")
    if block is None:
        return Layout("FP8, a scale a matrix", 8, 0, 0, 64 if said.get("activation_scheme") == "static" else 32, inputs="fp8"), whole, False
    rows, columns = (natural(size) or 1 for size in block)
    return Layout(f"FP8 in blocks of {rows} × {columns}", 8, columns, 32, rows=rows, inputs="fp8"), whole, False


def awq(said: dict[str, Any]) -> Read:
    bits, group = natural(said.get("bits", said.get("w_bit")), 4), grouped(said.get("group_size", said.get("q_group_size")))
    return Layout(titled("AWQ", bits, group), bits, group, 16 + bits * bool(said.get("zero_point", True))), listed(said, "modules_to_not_convert"), False


def gptq(said: dict[str, Any]) -> Read:
    """Zeros and the group of each input, 32 bits, are in the file whether they are needed or not."""
    bits, group, rules = natural(said.get("bits"), 2, 3, 4, 8), grouped(said.get("group_size")), said.get("dynamic") or {}
    if said.get("modules_in_block_to_quantize") or not all(rule.startswith("-:") for rule in rules):
        raise ValueError("layers differ")
    return Layout(titled("GPTQ", bits, group), bits, group, 16 + bits, column=32), [f"re:{rule[2:]}" for rule in rules], bool(said.get("lm_head"))


def compressed(said: dict[str, Any]) -> Read:
    """compressed-tensors: scales have 16 bits unless 8 are named; packed integers are stored with their shape, two numbers of 64 bits."""
    (group,) = said["config_groups"].values()
    if group["targets"] != ["Linear"] or (said.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError("layers differ")
    form, weights, inputs = group.get("format") or said.get("format"), group["weights"], group.get("input_activations") or {}
    kind, bits, by = weights["type"], natural(weights["num_bits"], 4, 8), weights["strategy"]
    fixed, ignored = bool(inputs) and not inputs.get("dynamic"), listed(said, "ignore")
    if (kind, bits) == ("float", 4):
        found = {"nvfp4-pack-quantized": LAYOUTS["nvfp4"], "mxfp4-pack-quantized": LAYOUTS["mxfp4"]}[form]
        return replace(found, matrix=found.matrix + 32 * (bool(inputs) and form.startswith("nvfp4")), inputs=rounded(inputs)), ignored, True
    packed, ordered = form == "pack-quantized", 32 * (weights.get("actorder") in ("group", True))
    shared = (8 if weights.get("scale_dtype") == "torch.uint8" else 16) + (0 if weights.get("symmetric", True) else bits)
    extra = 128 * packed + 16 * fixed
    name = {("int", 4): "INT4", ("int", 8): "INT8", ("float", 8): "FP8"}[kind, bits]
    also = {"inputs": rounded(inputs)}
    if by == "tensor":
        return Layout(f"{name}, a scale a matrix", bits, 0, 0, shared + extra, **also), ignored, True
    if by == "channel":
        return Layout(f"{name}, a scale a row", bits, 0, shared, extra, column=ordered, **also), ignored, True
    if by == "block":
        rows, columns = (natural(size) or 1 for size in weights["block_structure"])
        return Layout(f"{name} in blocks of {rows} × {columns}", bits, columns, shared, extra, rows=rows, **also), ignored, True
    size = grouped({"group": weights}[by]["group_size"])
    return Layout(f"{name}, g{size}", bits, size, shared, extra, column=ordered, **also), ignored, True


def rounded(inputs: dict[str, Any]) -> str:
    """What compressed-tensors rounds the inputs of a layer to, as Layout has it; "" where it leaves them, or to what no unit here multiplies."""
    kind = (inputs.get("type", "int"), inputs.get("num_bits")) if inputs else None
    return {("int", 8): "int8", ("float", 8): "fp8", ("float", 4): "fp4"}.get(kind, "")


def paths(model: Architecture, one: Matrix) -> list[str]:
    """The names that transformers gives a kind of matrix, one a layer that may have it; of the experts the first."""
    name, first, last = one.name, 0, model.layers
    kind = next((kind for kind in ("dense", "shared") if name.startswith(f"{kind} ")), "")
    name = name.removeprefix(f"{kind} ")
    linear = FUSED.get(model.family, {}).get(name) or ("q_b_proj" if name == "query" and model.latent and model.latent.q_rank else LINEARS[name])
    if model.family == "deepseek_v3" and one.part == "feed-forward":
        first, last = (0, model.dense) if kind == "dense" else (model.dense, model.layers)
    inside = {"": "experts." if model.family == "gpt_oss" else "experts.0.", "shared": "shared_experts.", "dense": ""}[kind] if model.experts > 1 else ""
    block = "self_attn." if one.part == "attention" else f"{'block_sparse_moe' if model.family == 'mixtral' else 'mlp'}.{inside}"
    return [f"model.layers.{layer}.{block}{linear}" for layer in range(first, last)]


class Unquantized:
    """The modules that a configuration leaves in 16 bits: by name or a part of it between dots, with "*" for anything, or as a regular expression of which
    dots, ".*", "^" and "$" are read. Raises ValueError for any other, and where matching them with all layers would take long.
    """

    def __init__(self, names: Sequence[str], layers: int) -> None:
        self.plain = {name for name in names if "*" not in name and not name.startswith("re:")}
        self.starts = [glob(name[3:]) for name in names if name.startswith("re:")]
        self.parts = [name for name in names if "*" in name and not name.startswith("re:")]
        many = layers > LAYERS or layers * (len(self.starts) + len(self.parts)) > MATCHES or any(len(name) > LONGEST for name in names)
        if many or any(set("[]?") & set(part) for part in self.parts):
            raise ValueError("patterns that are not read")

    def has(self, path: str) -> bool:
        parts = path.split(".")
        runs = [".".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1)]
        named = any(run in self.plain or any(fnmatchcase(run, part) for part in self.parts) for run in runs)
        return named or any(fnmatchcase(path, start) for start in self.starts)

    def holds(self, paths: Sequence[str]) -> bool:
        """Whether all of these modules are among them. Raises ValueError where some are and some are not."""
        found = {self.has(path) for path in paths}
        if len(found) > 1:
            raise ValueError("layers differ")
        return True in found


def glob(expression: str) -> str:
    """A regular expression, which is matched from the start of a name, as a pattern of fnmatch. Raises ValueError for one that is not read."""
    middle = expression.removeprefix("^").removesuffix("$")
    if not re.fullmatch(r"(?:[\w-]|\\\.|\.\*?)*", middle, re.ASCII):
        raise ValueError("a pattern that is not read")
    kinds = {"\\.": ".", ".*": "*", ".": "?"}
    return re.sub(r"\\\.|\.\*?", lambda found: kinds[found[0]], middle) + ("" if expression.endswith("$") else "*")


METHODS: dict[Any, Callable[[dict[str, Any]], Read]] = {"mxfp4": mxfp4, "fp8": fp8, "awq": awq, "gptq": gptq, "compressed-tensors": compressed}
