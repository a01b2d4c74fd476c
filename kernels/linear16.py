"""y = x W^T + b in bfloat16 where a CPU has no bfloat16 units: many rows go through float32. Knows tensors only.

torch then multiplies bfloat16 with plain loops, which takes several times as long as its float32 product. Numbers in bfloat16 are exact in float32, and both
ways add in float32, so the result is the same up to the order of the sum.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

MANY, PART = 8, 1 << 20  # rows from which float32 is faster; weights that are converted at once, 4 MiB, so that they stay in the cache


@cache
def has_units() -> bool:
    """Whether this CPU multiplies bfloat16 itself, as AVX512-BF16, AMX and Arm's BF16 do."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K] and bias [N] in one dtype on one device -> [..., N]. As `F.linear`, differentiable like it."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or rows < MANY or has_units():
        return F.linear(x, weight, bias)
    wide, step = x.float(), max(1, PART // weight.shape[1])
    parts = [F.linear(wide, part.float()).to(x.dtype) for part in weight.split(step)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return y if bias is None else y + bias
