"""What the ops y = x W^T share: cases, random weights in every format, the float64 product, and the 16-bit linear they are timed against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import linear16, native
from kernels.floats import float_values
from kernels.op import BLOCK, FLOAT8, REFERENCE, Activation, Baseline, Form, LowBitWeight, Nested, Op, dequantize, multiply


@dataclass(frozen=True)
class Case:
    """One product to check or time. group 0 is one scale a row, -1 one scale in all, -128 one scale for 128 x 128 weights.

    codebook: "" for integers, a float format's name, or "table" for any other. fractional: zeros that are no integers, as HQQ finds them.
    scale: "" for bfloat16, "float32", "e8m0" (powers of two), "e4m3" (times a unit) or "nested". m, n, k 0: a format to be timed at any shape.
    """

    m: int
    n: int
    k: int
    bits: int
    group: int
    symmetric: bool = True
    codebook: str = ""
    activation: Activation | None = None
    fractional: bool = False
    scale: str = ""

    def format(self) -> str:
        """Such as "4-bit g128" or "float8 e4m3, inputs e4m3 per token"."""
        what = f"{self.codebook} " if self.codebook else ""
        group = {0: "per row", -1: "per tensor", -BLOCK: "per 128x128"}.get(self.group, f"g{self.group}")
        inputs = "" if self.activation is None else f", inputs {self.activation.name()}"
        outliers = f", {len(self.activation.columns)} columns in 16 bits" if self.activation and self.activation.columns else ""
        return f"{self.bits}-bit {what}{group}{inputs}{outliers}"


def product_op(name: str, title: str, gpu: tuple[Form, ...], cpu: tuple[Form, ...], **fields: Any) -> Op:
    """An Op that multiplies inputs [M, K] with a LowBitWeight; the reference is its last form on either side."""
    return Op(
        name=name, title=title, gpu=(*gpu, REFERENCE), cpu=(*cpu, REFERENCE), problem=random_problem, reference=exact_product,
        flops=lambda case: 2.0 * case.m * case.n * case.k, baselines=bf16_linear, **fields,
    )  # fmt: skip


def random_problem(case: Case, generator: torch.Generator) -> tuple[Tensor, LowBitWeight]:
    """Inputs [M, K] and a weight of the case's format."""
    return torch.randn(case.m, case.k, generator=generator), random_weight(case, generator)


def random_weight(case: Case, generator: torch.Generator) -> LowBitWeight:
    """A weight of a case's shape and format in which every code occurs."""
    groups = case.k // BLOCK if case.group == -BLOCK else case.k // case.group if case.group > 0 else 1
    rows = {-1: 1, -BLOCK: case.n // BLOCK}.get(case.group, case.n)
    codes = torch.randint(0, 2**case.bits, (case.n, case.k), generator=generator, dtype=torch.uint8)
    codes.flatten()[: 2**case.bits] = torch.arange(2**case.bits, dtype=torch.uint8)[: codes.numel()]
    zero = None if case.symmetric else torch.randint(0, 2**case.bits, (rows, groups), generator=generator).float()
    if case.fractional:
        zero = (zero + torch.rand(zero.shape, generator=generator)).half().float()
    name = case.codebook or (case.activation.kind if case.activation is not None and case.activation.kind in FLOAT8 else "")
    book = None
    if name == "table":
        book = torch.erfinv(torch.linspace(-0.96, 0.96, 2**case.bits))  # quantiles of a normal distribution, as NF4 has
        book = book / book.abs().max()
    elif name:
        book = float_values(name)
        codes = codes.where(book[codes.long()] != 0, 0)  # no infinities and no NaN
    scale, unit, nested = random_scale(case.scale, rows, groups, generator)
    return LowBitWeight(codes, scale, zero, case.bits, book, case.activation, unit, nested)


def random_scale(kind: str, rows: int, groups: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Nested | None]:
    """(scale [rows, groups], its unit, its nested form) of a kind that `Case.scale` names."""
    scale = torch.rand(rows, groups, generator=generator) * 0.02 + 0.005
    if kind == "e8m0":
        return torch.exp2(scale.log2().round()), None, None
    if kind == "e4m3":
        unit = torch.tensor(0.03 / 448)
        return (scale / unit).to(torch.float8_e4m3fn).float() * unit, unit, None
    if kind == "nested":
        codes = torch.randint(0, 256, (rows, groups), generator=generator, dtype=torch.uint8)
        book, offset, run = torch.linspace(-1, 1, 256), torch.tensor(0.02), 256
        outer = torch.rand(-(-codes.numel() // run), generator=generator) * 0.01
        which = torch.arange(codes.numel()).view(codes.shape) // run
        return book[codes.long()] * outer[which] + offset, None, Nested(codes, outer, book, offset, run)
    return (scale if kind == "float32" else scale.bfloat16()), None, None


def exact_product(x: Tensor, w: LowBitWeight) -> Tensor:
    """x W^T in float64, inputs rounded as the weight asks."""
    return multiply(x, w).double() if w.activation else x.double() @ dequantize(w).double().T


def bf16_linear(case: Case, generator: torch.Generator) -> list[Baseline]:
    """A bfloat16 weight of the same shape in torch's linear, and beside it on a CPU what 16-bit layers take there: with units for bfloat16 oneDNN's own layout
    of the weight, without them C.
    """
    weight = torch.randn(case.n, case.k, generator=generator).bfloat16()
    made = [Baseline("bf16 linear", {"w": weight}, lambda x, t: torch.nn.functional.linear(x, t["w"]))]
    if linear16.has_units():
        packed = {"w": torch.ops.mkldnn._reorder_linear_weight.default(weight, 1)}
        return [*made, Baseline("bf16 linear, reordered weight", packed, reordered_linear, "cpu")]
    if native.library()[0] is None:
        return made
    own = Baseline("native bf16 linear", {"w": weight}, lambda x, t: linear16.few(x, t["w"]), "cpu")
    return [*made, own, Baseline("bf16 linear by float32", {"w": weight}, lambda x, t: linear16.many(x, t["w"]), "cpu")]


def reordered_linear(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """x [M, K] times a weight "w" [N, K] in oneDNN's own layout -> [M, N]."""
    return torch.ops.mkldnn._linear_pointwise.default(x, tensors["w"], None, "none", [], "")
