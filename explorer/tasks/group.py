"""What happens to the weights of one group: values, scale, zero, codes, packed words, what comes back and how far off it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from explorer import models
from explorer.methods import Method, build, label_of
from explorer.qtensor import QuantizedTensor
from explorer.records import Answer, Event, InputError
from explorer.tasks import Engine, Task

SHOWN = 128  # weights of a row that one answer shows at most
WORD = 32


def words(codes: torch.Tensor, bits: int) -> list[str]:
    """Codes [G] in 32-bit words as a checkpoint packs them, first code in the lowest bits; in binary, highest bit first."""
    text = "".join(reversed([f"{code:0{bits}b}" for code in codes.tolist()]))
    text = text.zfill(-(-len(text) // WORD) * WORD)
    return [text[i : i + WORD] for i in range(len(text) - WORD, -1, -WORD)]


def work(engine: Engine, model: str, layer: str, method: str, params: dict[str, Any], row: int = 0, group: int = 0) -> Iterator[Event]:
    """Answer data: label, shape, width (of the group), start (its first column), values, codes, dequantized, errors (all [width]), scale, zero,
    grid, words, bits, bits_per_weight, weight_error (of the whole matrix, relative).
    """
    chosen = build(method, params)
    weight = models.weight_of(models.resolve(model.strip()), layer).float()
    tensor = quantized(chosen, weight, layer)
    n, k = weight.shape
    width = k // tensor.scale.shape[1]
    if not (0 <= row < n and 0 <= group < k // width):
        raise InputError(f"The layer has rows 0 to {n - 1} and groups 0 to {k // width - 1}; row {row}, group {group} is not one of them.")
    part = slice(group * width, group * width + min(width, SHOWN))
    back = tensor.dequantize()
    codes = tensor.codes[row, part]
    at = min(row, tensor.scale.shape[0] - 1), min(group, tensor.scale.shape[1] - 1)
    yield Answer("group", {
        "label": label_of(chosen), "shape": [n, k], "width": width, "start": part.start, "bits": tensor.bits,
        "values": weight[row, part].tolist(), "codes": codes.tolist(), "dequantized": back[row, part].tolist(),
        "errors": (back - weight)[row, part].tolist(), "scale": tensor.scale[at].item(), "zero": None if tensor.zero is None else tensor.zero[at].item(),
        "grid": tensor.grid(row, group).tolist(), "words": words(codes, tensor.bits),
        "bits_per_weight": tensor.stored_bits() / weight.numel(), "weight_error": ((back - weight).norm() / weight.norm()).item(),
    })  # fmt: skip


def quantized(method: Method, weight: torch.Tensor, layer: str) -> QuantizedTensor:
    """The weight alone under a method. Raises InputError for methods that need more than the weight."""
    if method.of_model or method.reads_inputs():
        raise InputError(f"{method.title} needs the model's inputs; choose a method that looks at the weight alone, such as RTN, HQQ or NF4.")
    if why := method.refuses(tuple(weight.shape), layer):
        raise InputError(f"This layer stays in 16 bits: {why}.")
    return method.quantize(weight, None, layer)


TASK = Task("group", work, turn="none", stored=False)
