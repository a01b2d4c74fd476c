"""Weight-only matmul with 8-bit storage: int8, and codes of 5 to 7 bits widened to it."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import low_bit_matmul
from kernels.op import Case, Form, LowBitWeight, Op, Packed


def _cpu_refuses(w: LowBitWeight) -> str:
    if w.codebook is not None:
        return "torch has no CPU operator for codebooks"
    return "" if w.scale.shape[1] == 1 else "torch's int8 CPU operator takes one scale a row, not groups"


def _cpu_pack(w: LowBitWeight) -> Packed:
    """Codes minus the middle as int8 [N, K], scale [N] bfloat16; when asymmetric also shift [N] float32 = (middle - zero) * scale."""
    n, middle = w.codes.shape[0], 2 ** (w.bits - 1)
    tensors = {"codes": (w.codes.to(torch.int16) - middle).to(torch.int8), "scale": w.scale.expand(n, 1)[:, 0].bfloat16().contiguous()}
    if w.zero is not None:
        tensors["shift"] = ((middle - w.zero) * w.scale.float()).expand(n, 1)[:, 0].contiguous()
    return Packed(tensors, ())


def _cpu_run(x: Tensor, packed: Packed) -> Tensor:
    # Other dtypes than bf16 take a scalar path that is 10 times slower.
    t = packed.tensors
    y = torch.ops.aten._weight_int8pack_mm(x.bfloat16(), t["codes"], t["scale"])
    if "shift" in t:
        y = y.float() + x.float().sum(-1, keepdim=True) * t["shift"]
    return y.to(x.dtype)


OP = Op(
    name="int8_matmul",
    title="y = x W^T, W in 8-bit codes",
    bits=(5, 8),
    triton=Form("triton", low_bit_matmul.refuses, lambda w: low_bit_matmul.pack(w, 8), low_bit_matmul.run, "5- to 7-bit codes occupy 8 bits"),
    cpu=Form("cpu", _cpu_refuses, _cpu_pack, _cpu_run, "bf16 activations; 5- to 7-bit codes occupy 8 bits"),
    cases=(
        *(Case(m, 64, 256, 8, g, s) for m in (1, 5, 33) for g in (64, 0, -1) for s in (True, False)),
        Case(3, 48, 384, 5, 0), Case(3, 48, 384, 6, 128, False), Case(7, 37, 128, 8, 32), Case(2, 21, 80, 7, 0, False),
    ),
)  # fmt: skip
