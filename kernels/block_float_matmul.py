"""Matmul of inputs in block floats (MX, NVFP4) with weights in block floats, on FP4 units or, inputs rounded to values first, in 16 bits.

What FP4 and MX units multiply is exact in 16 bits, and sums are float32: the weight-only product of the rounded values is the same number. For inputs in
8 bits no form runs on such units yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import formats, low_bit_matmul, native_round
from kernels.cpu_forms import COPY, NIBBLES
from kernels.fp4_product import FP4
from kernels.native import NATIVE
from kernels.op import Activation, Form, LowBitWeight, Packed, factor
from kernels.product import Case, product_op
from kernels.round_blocks import cpu_values, refuses, torch_values, triton_values


def _after_rounding(form: Form, values: Callable[[Tensor, Activation], Tensor], name: str, note: str) -> Form:
    """A weight-only form on inputs that were rounded before: the same packed tensors, its meta = (activation, that form's)."""

    def pack(w: LowBitWeight) -> Packed:
        times = factor(w.activation)
        if times != 1:
            w = w._replace(scale=w.scale.float() * times, unit=None if w.unit is None else w.unit * times)
        packed = form.pack(w._replace(activation=None))
        return Packed(packed.tensors, (w.activation, packed.meta))

    def run(x: Tensor, packed: Packed) -> Tensor:
        activation, meta = packed.meta
        if form is NATIVE and not torch.compiler.is_compiling():
            return native_round.product(x, Packed(packed.tensors, meta), activation)
        return form.run(values(x, activation), Packed(packed.tensors, meta))

    return dataclasses.replace(
        form, name=name, note=note, pack=pack, run=run, refuses=lambda w: refuses(w.activation, w.codes.shape[1]) or form.refuses(w._replace(activation=None)),
        crossing=form.crossing and (lambda packed: form.crossing(Packed(packed.tensors, packed.meta[1]))),
    )  # fmt: skip


WEIGHT_ONLY = Form("triton", formats.refuses, formats.pack, low_bit_matmul.run)
MX4, NV4, MX8 = Activation("e2m1", "mx"), Activation("e2m1", "nvfp4", 0.0017), Activation("e4m3", "mx")

OP = product_op(
    "block_float_matmul",
    "y = x W^T, x and W in block floats",
    gpu=(FP4, _after_rounding(WEIGHT_ONLY, triton_values, "triton 16-bit", "inputs are rounded in a pass of their own, then products in 16 bits")),
    cpu=(
        _after_rounding(NATIVE, torch_values, NATIVE.name, f"inputs are rounded in the same call; {NATIVE.note}"),
        *(_after_rounding(form, cpu_values, form.name, f"inputs are rounded in a pass of their own; {form.note}") for form in (NIBBLES, COPY)),
    ),
    bits=(4, 8),
    activation="block float",
    timed=(
        Case(0, 0, 0, 4, 32, codebook="e2m1", scale="e8m0", activation=MX4), Case(0, 0, 0, 4, 16, codebook="e2m1", scale="e4m3", activation=NV4),
        Case(0, 0, 0, 8, 32, codebook="e4m3", scale="e8m0", activation=MX8),
    ),
    cases=(
        *(Case(m, 48, 256, 4, 32, codebook="e2m1", scale="e8m0", activation=a) for m in (1, 33) for a in (MX4, MX8)),
        *(Case(m, 48, 256, 4, 16, codebook="e2m1", scale="e4m3", activation=NV4) for m in (1, 33, 130)),
        Case(130, 48, 128, 4, 32, codebook="e2m1", scale="e8m0", activation=MX4), Case(3, 37, 96, 4, 32, codebook="e2m1", scale="e8m0", activation=MX4),
        Case(3, 37, 80, 4, 16, codebook="e2m1", scale="e4m3", activation=NV4),
        *(Case(m, 48, 128, bits, 32, codebook=name, scale="e8m0", activation=Activation(name, "mx"))
          for m in (1, 130) for name, bits in (("e2m3", 6), ("e3m2", 6), ("e4m3", 8), ("e5m2", 8))),
    ),
)  # fmt: skip
