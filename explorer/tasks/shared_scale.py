"""Whose scale is it: rows of one matrix, or groups of one row, with the grid of the scale they share and the grid of a scale of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.methods import build
from explorer.qtensor import affine_codes, affine_parameters
from explorer.records import Answer, Event, InputError
from explorer.tasks import Engine, Task

LINES = 16
LANES = {"tensor": ("tensor",), "channel": ("tensor", "channel"), "group": ("channel", "group")}  # the grids that are compared


def spread(pieces: Tensor) -> Tensor:
    """Which of the pieces [P, n] are shown: at most LINES, evenly spaced in the order of their ranges, narrowest first."""
    order = (pieces.amax(1) - pieces.amin(1)).argsort(stable=True)
    return order[torch.arange(few := min(LINES, len(order))) * (len(order) - 1) // max(1, few - 1)]


def grids(pieces: Tensor, sharing: Tensor, bits: int, symmetric: bool) -> list[dict[str, Any]]:
    """Of each piece [P, n] float32 under RTN with the scale of `sharing` ([1, m] one for all, [P, m] each its own): scale, zero, first (lowest code
    in reach), codes (how many from there to the highest), error (relative, None for a piece of zeros).
    """
    scale, zero = affine_parameters(sharing.unsqueeze(1), bits, symmetric)
    scale, zero = scale.expand(len(pieces), 1), None if zero is None else zero.expand(len(pieces), 1)
    codes = affine_codes(pieces.unsqueeze(1), scale, zero, bits).squeeze(1).float()
    middle = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.float32) if zero is None else zero
    error = ((codes - middle) * scale.float() - pieces).norm(dim=1) / pieces.norm(dim=1)
    first, last = codes.amin(1), codes.amax(1)
    return [
        {"scale": s, "zero": z, "first": int(a), "codes": int(b - a) + 1, "error": e if e == e else None}
        for s, z, a, b, e in zip(scale[:, 0].tolist(), middle[:, 0].tolist(), first.tolist(), last.tolist(), error.tolist(), strict=True)
    ]


def work(engine: Engine, model: str, layer: str, bits: int = 4, granularity: str = "channel", group_size: int = 64, symmetric: bool = True) -> Iterator[Event]:
    """Answer data: lanes (what shares the scale of each grid: tensor, channel, group), lines (name, low, high, p5 and p95 of its values, grids by lane
    as `grids` gives them), of (how many such lines there are), row (whose groups the lines are, None where they are rows), available (codes of a grid
    that weights can take), bits, group_size, layer.
    """
    method = build("rtn", {"bits": bits, "granularity": granularity, "group_size": group_size, "symmetric": symmetric})
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub).float()
    if why := method.refuses(tuple(weight.shape), layer):
        raise InputError(f"This layer stays in 16 bits: {why}.")
    row = int((weight.amax(1) - weight.amin(1)).argmax()) if granularity == "group" else None
    pieces = weight if row is None else weight[row].unflatten(0, (-1, group_size))
    whole = torch.stack([pieces.min(), pieces.max()]).unsqueeze(0)
    shown = spread(pieces)
    part = pieces[shown]
    names = [f"row {i}" if row is None else f"{i * group_size} to {(i + 1) * group_size - 1}" for i in shown.tolist()]
    lanes = LANES[granularity]
    found = [grids(part, part if lane == granularity and lane != "tensor" else whole, bits, symmetric) for lane in lanes]
    ends = torch.stack([part.amin(1), part.amax(1), *torch.quantile(part, torch.tensor([0.05, 0.95]), dim=1)], dim=1).tolist()
    lines = [
        {"name": name, "low": low, "high": high, "p5": p5, "p95": p95, "grids": list(own)}
        for name, (low, high, p5, p95), own in zip(names, ends, zip(*found, strict=True), strict=True)
    ]
    about = {"bits": bits, "group_size": group_size, "layer": layer, "row": row, "of": len(pieces), "available": 2**bits - symmetric}
    yield Answer("shared_scale", {"lanes": list(lanes), "lines": lines} | about)


TASK = Task("shared_scale", work, turn="none", stored=False)
