"""y = x W^T + b in bfloat16 where a CPU has no bfloat16 units: up to some rows in C, many rows by way of float32. Knows tensors only.

torch then multiplies bfloat16 with plain loops, which take two to ten times as long. Numbers in bfloat16 are exact in float32, and all ways add in float32,
so the result is the same up to the order of the sum. Low bits are compared with this: beside torch's loops their kernels would seem faster than they are.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import native

MANY, PART = 64, 1 << 20  # rows from which float32 is faster; weights that are converted at once, 4 MiB, so that they stay in the cache
MANY_FOR_TORCH = 8  # the same beside torch's loops


@cache
def has_units() -> bool:
    """Whether this CPU multiplies bfloat16 itself, as AVX512-BF16, AMX and Arm's BF16 do."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K] and bias [N] in one dtype on one device -> [..., N]. As `F.linear`, differentiable like it."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or has_units():
        return F.linear(x, weight, bias)
    if rows < MANY and fits(x, weight, bias):
        return few(x, weight, bias)
    if rows < MANY_FOR_TORCH or not (bias is None or bias.dtype == x.dtype):
        return F.linear(x, weight, bias)
    y = many(x, weight)
    return y if bias is None else y + bias


def many(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T by way of float32, a part of the weight after the other."""
    wide, step = x.float(), max(1, PART // weight.shape[1])
    parts = [F.linear(wide, part.float()).to(x.dtype) for part in weight.split(step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `few` serves: it knows no gradients, and reads weights and bias as they lie, bfloat16 in the memory of this CPU."""
    (n, k), held = weight.shape, [t for t in (weight, bias) if t is not None]
    as_x = all(t.dtype == x.dtype and t.device == x.device and t.is_contiguous() for t in held)
    if torch.compiler.is_compiling() or not as_x or x.shape[-1] != k or (bias is not None and bias.shape != (n,)):
        return False
    return native.library()[0] is not None and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *held)))


def few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of some rows by native_linear.c, whose time goes to reading the weight once; bfloat16 on a CPU, without gradients."""
    x, (n, k) = x.contiguous(), weight.shape
    y = x.new_empty(*x.shape[:-1], n)
    added = None if bias is None else bias.data_ptr()
    if native.library()[0].product16(x.data_ptr(), weight.data_ptr(), added, y.data_ptr(), x.numel() // k, n, k):
        raise MemoryError("no memory for the inputs of a product")
    return y


def name() -> str:
    """What multiplies few rows with 16-bit weights on this CPU where it has no bfloat16 units."""
    return "native bfloat16 linear" if native.library()[0] is not None else "torch linear"
