"""How the error grows through the depth of the model: how far the residual stream has moved after each block, relative to the 16-bit model's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from explorer.kvcache import chunked_logits
from explorer.metrics import Metric, Subject
from explorer.metrics.layers import relative
from explorer.models import blocks
from explorer.records import Measurement, Progress

WINDOWS = 2


def streams(subject: Subject, kv_bits: int) -> list[Tensor]:
    """What each block of the model, as it stands, writes to the residual stream on the first windows: [tokens, H] a block, in the model's dtype."""
    rows = subject.windows[:WINDOWS]
    seen: list[list[Tensor]] = [[] for _ in blocks(subject.loaded.model)]

    def keep(parts: list[Tensor], module: Any, args: Any, output: Any) -> None:
        parts.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(partial(keep, parts)) for block, parts in zip(blocks(subject.loaded.model), seen, strict=True)]
    try:
        chunked_logits(subject.loaded.model, rows, kv_bits)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts, 1).flatten(0, 1) for parts in seen]


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    yield Progress("error through depth", 0, 2, "16-bit model")
    reference = streams(subject, 16)
    moved = reference
    if subject.layers or subject.kv_bits != 16:
        yield Progress("error through depth", 1, 2, "quantized model")
        with subject.quantized():
            moved = streams(subject, subject.kv_bits)
    errors = [round(relative(a.float() - b.float(), b), 7) for a, b in zip(moved, reference, strict=True)]
    yield Measurement("residual_error", errors, "relative", n=reference[0].shape[0])


METRIC = Metric("depth", measure)
