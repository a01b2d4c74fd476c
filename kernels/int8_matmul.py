"""Weight-only matmul of codes of 5 to 8 bits and small floats of 6 and 8; but for the form in C, which keeps 5 and 6 bits, all forms widen them to bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import formats, low_bit_matmul
from kernels.cpu_forms import COPY, NIBBLES
from kernels.native import NATIVE
from kernels.op import Form, LowBitWeight, Packed
from kernels.product import Case, product_op


def _cpu_refuses(w: LowBitWeight) -> str:
    if w.codebook is not None:
        return "torch has no CPU operator for codebooks"
    if w.zero is not None and not torch.equal(w.zero, w.zero.round()):
        return "this form keeps zeros as integers"
    return "" if w.scale.shape[1] == 1 else "torch's int8 CPU operator takes one scale a row, not groups"


def _cpu_pack(w: LowBitWeight) -> Packed:
    """Codes minus the middle as int8 [N, K], scale [N] bfloat16. When asymmetric, four more columns for the zero: see `_cpu_run`."""
    n, middle = w.codes.shape[0], 2 ** (w.bits - 1)
    codes = (w.codes.to(torch.int16) - middle).to(torch.int8)
    if w.zero is not None:
        shift = (middle - w.zero).expand(n, 1)
        fits = shift.clamp(-127, 127)
        codes = torch.cat([codes, *(part.to(torch.int8) for part in (fits, fits, shift - fits, shift - fits))], 1)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 16))  # the operator reads 16 at a time, beyond the end or not
    return Packed({"codes": codes.contiguous(), "scale": w.scale.expand(n, 1)[:, 0].bfloat16().contiguous()}, (w.zero is not None,))


def _cpu_run(x: Tensor, packed: Packed) -> Tensor:
    # Other dtypes than bf16 take a scalar path that is 10 times slower. The zero's part, sum(x) (middle - zero), is summed inside the
    # operator in float32, with sum(x) as two bf16 columns: added afterwards to results rounded to bf16, it would lose what cancels.
    t, narrow = packed.tensors, x.bfloat16()
    if packed.meta[0]:
        total = narrow.float().sum(-1, keepdim=True)
        high = total.bfloat16()
        low = (total - high.float()).bfloat16()
        narrow = torch.cat([narrow, high, low, high, low], 1)
    narrow = torch.nn.functional.pad(narrow, (0, t["codes"].shape[1] - narrow.shape[1]))
    return torch.ops.aten._weight_int8pack_mm(narrow, t["codes"], t["scale"]).to(x.dtype)


OP = product_op(
    "int8_matmul",
    "y = x W^T, W in codes of 5 to 8 bits",
    gpu=(Form("triton", formats.refuses, formats.pack, low_bit_matmul.run, "5- to 7-bit codes occupy 8 bits"),),
    cpu=(NATIVE, Form("cpu", _cpu_refuses, _cpu_pack, _cpu_run, "bf16 activations; 5- to 7-bit codes occupy 8 bits"), NIBBLES, COPY),
    bits=(5, 8),
    timed=(Case(0, 0, 0, 8, 0), Case(0, 0, 0, 6, 16)),
    cases=(
        *(Case(m, 64, 256, 8, g, s) for m in (1, 5, 33) for g in (64, 0, -1) for s in (True, False)),
        Case(3, 32, 2048, 8, 0), Case(130, 48, 384, 6, 128, False), Case(2, 48, 384, 6, 16), Case(33, 48, 96, 8, 32, scale="float32"),
        Case(3, 48, 384, 5, 0), Case(3, 48, 384, 6, 128, False), Case(7, 37, 128, 8, 32), Case(2, 21, 80, 7, 0, False),
        Case(3, 48, 256, 5, 32, False, fractional=True, scale="float32"),
        Case(5, 64, 256, 8, 64, False, fractional=True), Case(5, 64, 256, 8, 0, False, fractional=True), Case(3, 21, 90, 8, 0), Case(5, 40, 84, 6, -1, False),
        *(Case(m, 48, 128, bits, 32, codebook=name, scale="e8m0") for m in (1, 130) for name, bits in (("e2m3", 6), ("e3m2", 6), ("e4m3", 8), ("e5m2", 8))),
        Case(3, 128, 256, 8, -128, codebook="e4m3", scale="float32"), Case(3, 37, 80, 8, 0, codebook="table"),
    ),
)  # fmt: skip
