"""How much of the range to keep: the error of RTN on one matrix for every share of min to max, at several widths."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from explorer import models
from explorer.methods import build
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task
from explorer.tasks.group import decibel, quantized, shrunk

SHARES = [round(0.3 + 0.05 * i, 2) for i in range(15)]
WIDTHS = (2, 3, 4, 8)
ROWS = 32


def work(engine: Engine, model: str, layer: str, granularity: str = "channel", group_size: int = 64, symmetric: bool = True) -> Iterator[Event]:
    """Answer data: shares (of the range that is kept), sqnr ({bits: dB at each share}), rows and of (how many rows were looked at, evenly spaced).

    A scale for the whole tensor is taken over the rows that are looked at.
    """
    method = build("rtn", {"granularity": granularity, "group_size": group_size, "symmetric": symmetric})
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub)
    part = weight[torch.linspace(0, len(weight) - 1, min(ROWS, len(weight))).long()].float()
    quantized(method, part, layer)  # refuses what the method cannot do, in its words
    sqnr = {}
    for bits in WIDTHS:
        tensors = [shrunk(part, bits, granularity, group_size, symmetric, share) for share in SHARES]
        sqnr[str(bits)] = [decibel(part, tensor.dequantize() - part) for tensor in tensors]
    yield Answer("clipping", {"shares": SHARES, "sqnr": sqnr, "rows": len(part), "of": len(weight), "granularity": granularity, "group_size": group_size})


TASK = Task("clipping", work, turn="none", stored=False)
