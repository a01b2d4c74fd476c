"""Rounding of inputs in C: how an Activation is told to native_round.c, the rounding by itself, and the weight-only product of rounded inputs in one call."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.floats import FORMATS, bias
from kernels.op import BLOCKS, FLOAT8, LIMIT, Activation, Packed, factor, round_activation

OWN, ALL, GIVEN, POWER, E4M3 = range(5)  # as in native.h: whose scale it is
CODES, ELEMENTS, VALUES = range(3)  # as in native.h: what comes out


class Rounding(ctypes.Structure):
    """`struct rounding` of native.h."""

    _fields_ = [
        ("part", ctypes.c_long), *((name, ctypes.c_float) for name in ("largest", "least", "given", "factor")),
        *((name, ctypes.c_int) for name in ("per", "form", "mantissa")),
    ]  # fmt: skip


@lru_cache(maxsize=4096)
def rounding(a: Activation, k: int, form: int) -> Any:
    """A reference to a Rounding of rows of k inputs, kept as `native.described` keeps them."""
    per = {"mx": POWER, "nvfp4": E4M3}.get(a.per, GIVEN if a.scale else ALL if a.per == "tensor" else OWN)
    times = 2.0 ** (1 - math.frexp(LIMIT[a.kind])[1]) if per == POWER else factor(a)
    mantissa, least = (-1, 1.0) if a.kind == "int8" else (FORMATS[a.kind][1], 2.0 ** (1 - bias(a.kind)))
    return ctypes.byref(Rounding(BLOCKS.get(a.per, k), LIMIT[a.kind], least, a.scale, times, per, form, mantissa))


def readable(x: Tensor) -> Tensor:
    """x as the C code reads it: bfloat16 or float32, row after row."""
    return (x if x.dtype in (torch.bfloat16, torch.float32) else x.float()).contiguous()


def rounded(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """As `round_activation`, bit by bit but for the codes of rows that hold infinities or NaN; not for block floats."""
    x = readable(x)
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.int8 if a.kind == "int8" else FLOAT8[a.kind])
    scale = torch.empty(1, 1) if a.per == "tensor" and not a.scale else torch.empty(m, k // BLOCKS.get(a.per, k))
    _run(x, a, CODES, codes, scale)
    return codes, scale


def values(x: Tensor, a: Activation) -> Tensor:
    """x [M, K] rounded to block floats, over `factor`, in x's dtype: as `round_blocks.torch_values`, bit by bit."""
    read = readable(x)
    y = torch.empty(read.shape, dtype=read.dtype)
    _run(read, a, VALUES, y, None)
    return y.to(x.dtype)


def _run(x: Tensor, a: Activation, form: int, to: Tensor, scale: Tensor | None) -> None:
    place = None if scale is None else scale.data_ptr()
    how = rounding(a, x.shape[1], form)
    native.library()[0].round_rows(x.data_ptr(), x.dtype is torch.float32, *x.shape, how, to.data_ptr(), to.dtype is torch.float32, place)


def round_here(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """`round_activation` on a CPU, in C where that is built."""
    fast = native.library()[0] is not None and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return rounded(x, a) if fast and not a.small_blocks() else round_activation(x, a)


def product(x: Tensor, packed: Packed, a: Activation) -> Tensor:
    """x [M, K] -> [M, N] in x's dtype: `native.product` of x rounded in the same call, to elements whose scale comes last or, with a scale a block, values."""
    how = rounding(a, x.shape[1], VALUES if a.per in BLOCKS else ELEMENTS)
    y = native.product(readable(x), packed, how)
    return y if y.dtype is x.dtype else y.to(x.dtype)
