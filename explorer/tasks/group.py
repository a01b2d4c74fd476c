"""What happens to the weights of one group: values, scale, zero, codes, packed words, what comes back and how far off it is."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.methods import Method, build, label_of
from explorer.methods.mixed import Mixed
from explorer.qtensor import QuantizedTensor, affine_codes, affine_parameters, group_view
from explorer.records import Answer, Event, InputError
from explorer.tasks import Engine, Task
from kernels.op import dequantize

SHOWN = 128  # weights of a row that one answer shows at most
WORD = 32
SAMPLE = 48  # rows that a method with a long search is run on; its groups do not see other rows, so these come out as they would in the whole
PICKS = ("", "error", "outlier", "random")


def words(codes: Tensor, bits: int) -> list[str]:
    """Codes [G] in 32-bit words as a checkpoint packs them, first code in the lowest bits; in binary, highest bit first."""
    text = "".join(reversed([f"{code:0{bits}b}" for code in codes.tolist()]))
    text = text.zfill(-(-len(text) // WORD) * WORD)
    return [text[i : i + WORD] for i in range(len(text) - WORD, -1, -WORD)]


def decibel(weight: Tensor, error: Tensor) -> float | None:
    """Signal to quantization noise, 10 log10(sum w^2 / sum e^2) in dB; None where one of the two sums is 0."""
    signal, noise = weight.square().sum().item(), error.square().sum().item()
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def quantized(method: Method, weight: Tensor, layer: str, clip: float = 1.0) -> QuantizedTensor:
    """The weight [N, K] float32 alone under a method; clip: the share of the range from min to max that RTN's grid spans. Raises InputError
    for methods that need more than the weight.
    """
    if method.of_model or method.reads_inputs():
        raise InputError(f"{method.title} needs the model's inputs; choose a method that looks at the weight alone, such as RTN, HQQ or NF4.")
    if why := method.refuses(tuple(weight.shape), layer):
        raise InputError(f"This layer stays in 16 bits: {why}.")
    if clip == 1:
        return method.quantize(weight, None, layer)
    if method.name != "rtn" or method.clip or method.rotate:
        raise InputError("Only plain RTN takes a share of the range; set it back to 1, or choose RTN without MSE clip and rotation.")
    return shrunk(weight, method.bits, method.granularity, method.group_size, method.symmetric, clip)


def shrunk(weight: Tensor, bits: int, granularity: str, group_size: int, symmetric: bool, clip: float) -> QuantizedTensor:
    """RTN over `clip` times the range from min to max of each group; what lies beyond goes to the outermost code. weight [N, K] float32."""
    groups = group_view(weight, granularity, group_size)
    scale, zero = affine_parameters(groups * clip, bits, symmetric)
    return QuantizedTensor(affine_codes(groups, scale, zero, bits).reshape(weight.shape), scale, bits, zero)


@dataclass(frozen=True)
class Sample:
    """Rows of a weight under a method. rows [R]: which. seen [R, K]: the weights that are rounded, after a rotation where there is one;
    back [R, K]: what they become. Both float32.
    """

    rows: Tensor
    seen: Tensor
    back: Tensor
    tensor: QuantizedTensor

    @classmethod
    def of(cls, weight: Tensor, method: Method, layer: str, row: int, clip: float) -> Sample:
        n = weight.shape[0]
        long = method.name == "kquant" or (getattr(method, "clip", False) and method.granularity != "tensor")
        spread = torch.arange(few := min(SAMPLE, n)) * (n - 1) // max(1, few - 1) if long else torch.arange(n)
        rows = torch.cat([spread, torch.tensor([row])]).unique()
        part = weight[rows] if long else weight
        tensor = quantized(method, part, layer, clip)
        seen = tensor.rotation.apply(part) if tensor.rotation else part
        return cls(rows, seen, dequantize(tensor.weight()), tensor)

    def width(self) -> int:
        """Neighbours along a row that share a scale."""
        return self.seen.shape[1] // self.tensor.scale.shape[1]

    def where(self, pick: str) -> tuple[int, int]:
        """(row, group) of the largest error, of the largest weight, or of anywhere."""
        if pick == "random":
            return random.choice(self.rows.tolist()), random.randrange(self.tensor.scale.shape[1])
        flat = int(((self.back - self.seen) if pick == "error" else self.seen).abs().argmax())
        return int(self.rows[flat // self.seen.shape[1]]), flat % self.seen.shape[1] // self.width()


def changed(weight: Tensor, row: int, start: int, end: int, typed: str, planted: float) -> tuple[Tensor, int]:
    """(weight with a person's values at the beginning of row[start:end] and an outlier of `planted` standard deviations after them, how many
    values are not the model's). The weight is returned as it is when there is nothing to change.
    """
    try:
        values = [float(part) for part in typed.replace(",", " ").replace(";", " ").split()]
    except ValueError:
        raise InputError("The values must be numbers with spaces between them, such as 0.01 -0.2 0.05.") from None
    if not all(math.isfinite(v) and abs(v) < 1e6 for v in values):
        raise InputError("The values must be finite and below a million.")
    if len(values) > min(end - start, SHOWN):
        raise InputError(f"There are {len(values)} values; the group shows {min(end - start, SHOWN)}.")
    if not values and not planted:
        return weight, 0
    weight, sigma = weight.clone(), weight.std().item()
    weight[row, start : start + len(values)] = torch.tensor(values)
    count = len(values)
    if planted:
        weight[row, min(start + count, end - 1)] = planted * sigma
        count = min(count + 1, end - start)
    return weight, count


def work(
    engine: Engine, model: str, layer: str, method: str, params: dict[str, Any], row: int = 0, group: int = 0,
    pick: str = "", clip: float = 1.0, planted: float = 0.0, typed: str = "",
) -> Iterator[Event]:  # fmt: skip
    """pick: "error", "outlier" or "random" instead of row and group. clip: see `quantized`. planted, typed: see `changed`.

    Answer data: label, shape, row, group, groups, width (of the group), start (its first column), values, codes, dequantized, errors (all
    [width], at most SHOWN), scale, zero, low and high (of what shares the scale), sharing (how many), grid, words, bits, kind, rotated, changed
    (how many values are not the model's), sigma (of the model's weights), zeros and zeros_all (share of the unchanged weights that become 0
    in the group, and in the matrix), sqnr and sqnr_group (dB, of the unchanged weights), weight_error (relative), bits_per_weight, rows_seen.
    """
    chosen, ref = build(method, params), models.trained(model, engine.load.hub)
    original = models.weight_of(ref, layer, engine.load.hub).float()
    if pick not in PICKS or not 0.05 <= clip <= 1 or not 0 <= planted <= 1000:
        raise InputError("Pick one of error, outlier and random, keep 0.05 to 1 of the range, and plant at most 1,000 standard deviations.")
    if not 0 <= row < original.shape[0]:
        raise InputError(f"The layer has rows 0 to {original.shape[0] - 1}; row {row} is not one of them.")
    placed = chosen.for_model(models.configuration(ref, engine.load.hub))
    if isinstance(placed, Mixed):
        placed = placed.of(layer) or placed  # by itself, a method with a long search is run on a sample
    sample = Sample.of(original, placed, layer, row, clip)
    row, group = sample.where(pick) if pick else (row, group)
    width, groups = sample.width(), sample.tensor.scale.shape[1]
    if not 0 <= group < groups:
        raise InputError(f"A row of this layer has groups 0 to {groups - 1}; group {group} is not one of them.")
    weight, count = changed(original, row, group * width, (group + 1) * width, typed, planted)
    if count and sample.tensor.rotation:
        raise InputError("A rotation spreads a typed value over the whole row; switch it off to change single values.")
    if count or row not in sample.rows:
        sample = Sample.of(weight, placed, layer, row, clip)
    facts = _group(sample, row, group, count) | _matrix(sample, row, group, count)
    yield Answer("group", {"label": label_of(chosen), "shape": list(weight.shape), "changed": count, "sigma": original.std().item()} | facts)


def _group(sample: Sample, row: int, group: int, count: int) -> dict[str, Any]:
    """What is said of the group itself; `count` values at its beginning are not the model's."""
    tensor, width, at_row = sample.tensor, sample.width(), int((sample.rows == row).nonzero())
    shown = slice(group * width, group * width + min(width, SHOWN))
    whole = slice(group * width, (group + 1) * width)
    seen, back = sample.seen[at_row, whole], sample.back[at_row, whole]
    at = at_row * tensor.scale.shape[0] // len(sample.rows), group
    shared = sample.seen.unflatten(0, (tensor.scale.shape[0], -1))[at[0]][:, whole]
    kind = "codebook" if tensor.codebook is not None else "symmetric" if tensor.zero is None else "asymmetric"
    return {
        "row": row, "group": group, "groups": tensor.scale.shape[1], "width": width, "start": shown.start, "bits": tensor.bits, "kind": kind,
        "values": sample.seen[at_row, shown].tolist(), "codes": tensor.codes[at_row, shown].tolist(), "dequantized": sample.back[at_row, shown].tolist(),
        "errors": (sample.back - sample.seen)[at_row, shown].tolist(), "scale": tensor.scale[at].item(),
        "zero": None if tensor.zero is None else tensor.zero[at].item(), "low": shared.min().item(), "high": shared.max().item(),
        "sharing": shared.numel(), "grid": tensor.grid(*at).tolist(), "words": words(tensor.codes[at_row, shown], tensor.bits),
        "rotated": tensor.rotation is not None, "zeros": (back[count:] == 0).float().mean().item() if count < width else 0.0,
        "sqnr_group": decibel(seen[count:], (back - seen)[count:]),
    }  # fmt: skip


def _matrix(sample: Sample, row: int, group: int, count: int) -> dict[str, Any]:
    """What is said of the whole matrix, the changed values left out."""
    error = sample.back - sample.seen
    kept = torch.ones_like(error, dtype=torch.bool)
    start = group * sample.width()
    kept[int((sample.rows == row).nonzero()), start : start + count] = False
    weight, error, back = (sample.seen, error, sample.back) if not count else (sample.seen[kept], error[kept], sample.back[kept])
    return {
        "sqnr": decibel(weight, error), "weight_error": (error.norm() / weight.norm().clamp(min=1e-30)).item(),
        "zeros_all": (back == 0).float().mean().item(), "rows_seen": len(sample.rows),
        "bits_per_weight": sample.tensor.stored_bits() / sample.tensor.codes.numel(),
    }  # fmt: skip


TASK = Task("group", work, turn="none", stored=False)
