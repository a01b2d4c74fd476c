"""Bits against scales: the error of RTN on one matrix for every width and granularity, over what each stores."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from explorer import models
from explorer.methods import build
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task
from explorer.tasks.group import decibel

WIDTHS = (2, 3, 4, 6, 8)
SHAPES = (("tensor", 0), ("channel", 0), ("group", 128), ("group", 64), ("group", 32))
ROWS = 128


def work(engine: Engine, model: str, layer: str, symmetric: bool = True) -> Iterator[Event]:
    """Answer data: points, each {granularity, group_size, bits, stored (bits a weight of the whole matrix), sqnr (dB)}, rows and of.

    Errors are those of `rows` evenly spaced rows; a tensor's one scale is taken over them. Widths that a group size does not divide are left out.
    """
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub)
    part = weight[torch.linspace(0, len(weight) - 1, min(ROWS, len(weight))).long()].float()
    points = []
    for granularity, size in SHAPES:
        for bits in WIDTHS:
            params = {"bits": bits, "granularity": granularity, "symmetric": symmetric} | ({"group_size": size} if size else {})
            method = build("rtn", params)
            if method.refuses(tuple(weight.shape)):
                continue
            tensor = method.quantize(part, None)
            stored = bits + 16 / weight.numel() if granularity == "tensor" else tensor.stored_bits() / part.numel()
            points.append({"granularity": granularity, "group_size": size, "bits": bits, "stored": stored, "sqnr": decibel(part, tensor.dequantize() - part)})
    yield Answer("granularity", {"points": points, "rows": len(part), "of": len(weight), "symmetric": symmetric})


TASK = Task("granularity", work, turn="none", stored=False)
