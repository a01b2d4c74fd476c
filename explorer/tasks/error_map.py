"""Where in a matrix the error sits, and how large its scales are: one layer under a method that looks at weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.methods import build, label_of
from explorer.qtensor import QuantizedTensor
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task
from explorer.tasks.group import decibel, quantized

CELLS, BINS = 96, 48


def reduced(matrix: Tensor, cells: int = CELLS) -> tuple[Tensor, list[int]]:
    """(means over blocks [<= cells, <= cells], [rows, columns] of a block): the last block of a side may be smaller."""
    sizes = [-(-side // cells) for side in matrix.shape]
    pad = [size * -(-side // size) - side for side, size in zip(matrix.shape, sizes, strict=True)]
    padded = torch.nn.functional.pad(matrix, (0, pad[1], 0, pad[0]), value=torch.nan)
    return padded.unflatten(0, (-1, sizes[0])).unflatten(2, (-1, sizes[1])).nanmean((1, 3)), sizes


def digits(values: Tensor, count: int = 3) -> list[Any]:
    """Nested lists with `count` significant digits: what a heat map can show, in a third of the bytes."""
    rounded = values.double()
    step = 10.0 ** (rounded.abs().clamp(min=1e-30).log10().floor() - count + 1)
    return _short(((rounded / step).round() * step).tolist(), count)


def _short(value: Any, count: int) -> Any:
    return [_short(v, count) for v in value] if isinstance(value, list) else float(f"{value:.{count}g}")


def map_of(weight: Tensor, tensor: QuantizedTensor, cells: int = CELLS) -> dict[str, Any]:
    """shape; cells (mean |error| by block) and block ([rows, columns]); sqnr (dB); largest error and its [row, column]; scales: groups a row, and
    by run of rows their lowest, median and highest; scale_edges and scale_counts, a histogram over their logarithm. weight [N, K] float32.
    """
    error = tensor.dequantize() - weight
    means, block = reduced(error.abs(), cells)
    worst = int(error.abs().argmax())
    scale = tensor.scale.float().abs()
    runs = scale.tensor_split(min(cells, len(scale)))
    exponents = scale.clamp(min=1e-12).log10()
    low, high = exponents.min().item(), exponents.max().item()
    low, high = (low, high) if high - low > 1e-6 else (low - 0.05, high + 0.05)
    return {
        "shape": list(weight.shape), "cells": digits(means), "block": block, "sqnr": decibel(weight, error), "largest": error.abs().max().item(),
        "at": [worst // weight.shape[1], worst % weight.shape[1]], "groups": scale.shape[1], "scale_rows": scale.shape[0],
        "scales": {name: digits(torch.stack([what(run) for run in runs]))
                   for name, what in (("lowest", torch.min), ("median", torch.median), ("highest", torch.max))},
        "scale_edges": digits(10 ** torch.linspace(low, high, BINS + 1), 5), "scale_counts": torch.histc(exponents, BINS, low, high).int().tolist(),
    }  # fmt: skip


def work(engine: Engine, model: str, layer: str, method: str, params: dict[str, Any]) -> Iterator[Event]:
    """Answer data: label, layer, and what `map_of` gives."""
    chosen = build(method, params)
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub).float()
    yield Answer("error_map", {"label": label_of(chosen), "layer": layer} | map_of(weight, quantized(chosen, weight, layer)))


TASK = Task("error_map", work, turn="none", stored=False)
