"""Op: one operation as its plain PyTorch meaning, its Triton form and its CPU form; discovery of ops and the choice between forms."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class LowBitWeight(NamedTuple):
    """A weight [N, K] in low bits: w = (code - zero) * scale, or codebook[code] * scale.

    codes [N, K] uint8; scale [N, K/G], [N, 1] or [1, 1], bfloat16 or float32; zero: integers as float32 of scale's shape, or None for
    2**(bits-1); codebook [2**bits] float32 or None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    codebook: Tensor | None = None


class Packed(NamedTuple):
    """A weight as one form keeps it: named tensors that stay resident, and integers the form needs to run."""

    tensors: dict[str, Tensor]
    meta: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """One way of running an op: pack once, run many times.

    refuses(weight): "" when this form serves the weight, else a clause that says why not. run(x [M, K] bf16/fp16/fp32, packed) -> [M, N]
    in x's dtype.
    """

    name: str
    refuses: Callable[[LowBitWeight], str]
    pack: Callable[[LowBitWeight], Packed]
    run: Callable[[Tensor, Packed], Tensor]
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One shape and format an op is checked on. group 0 is one scale a row, -1 one scale in all."""

    m: int
    n: int
    k: int
    bits: int
    group: int
    symmetric: bool = True
    codebook: bool = False


@dataclass(frozen=True)
class Op:
    """An operation y = x W^T with W in low bits. bits: the widths it stores without loss, narrowest and widest."""

    name: str
    title: str
    bits: tuple[int, int]
    triton: Form
    cpu: Form
    cases: tuple[Case, ...]

    def forms(self) -> tuple[Form, ...]:
        return self.triton, self.cpu, REFERENCE


def per_group(values: Tensor, k: int) -> Tensor:
    """Scale or zero, [N or 1, groups], repeated to one value a weight, [N or 1, K] float32."""
    return values.float().repeat_interleave(k // values.shape[1], dim=1)


def dequantize(w: LowBitWeight) -> Tensor:
    """[N, K] float32: the one definition of what a low-bit weight means."""
    k = w.codes.shape[1]
    if w.codebook is not None:
        return w.codebook[w.codes.long()] * per_group(w.scale, k)
    zero = 2 ** (w.bits - 1) if w.zero is None else per_group(w.zero, k)
    return (w.codes.float() - zero) * per_group(w.scale, k)


def _reference_pack(w: LowBitWeight) -> Packed:
    optional = {"zero": w.zero, "codebook": w.codebook}
    return Packed({"codes": w.codes, "scale": w.scale} | {name: t for name, t in optional.items() if t is not None}, (w.bits,))


def _reference_run(x: Tensor, packed: Packed) -> Tensor:
    t = packed.tensors
    weight = dequantize(LowBitWeight(t["codes"], t["scale"], t.get("zero"), packed.meta[0], t.get("codebook")))
    return torch.nn.functional.linear(x, weight.to(x.dtype))


REFERENCE = Form("reference", lambda w: "", _reference_pack, _reference_run, "dequantizes the whole weight at every call; one byte a code")


@cache
def ops() -> dict[str, Op]:
    """Every OP in this folder, by name."""
    import kernels

    names = [m.name for m in pkgutil.iter_modules(kernels.__path__) if m.name.endswith("matmul") and m.name != "low_bit_matmul"]
    found = [importlib.import_module(f"kernels.{name}").OP for name in names]
    return {op.name: op for op in found}


def choose(weight: LowBitWeight, device: torch.device) -> tuple[str, Form, str]:
    """(op name, form, why) for a weight on a device: the narrowest op whose fast form serves it, else the reference and why nothing did."""
    reasons = []
    for op in sorted(ops().values(), key=lambda op: op.bits):
        if weight.bits > op.bits[1]:
            continue
        form = op.triton if device.type == "cuda" else op.cpu
        refusal = form.refuses(weight)
        if not refusal:
            return op.name, form, ""
        reasons.append(f"{op.name} ({form.name}): {refusal}")
    return "dequantize + linear", REFERENCE, "; ".join(reasons)


def random_weight(case: Case, generator: torch.Generator) -> LowBitWeight:
    """A weight of a case's shape and format in which every code occurs."""
    groups = {0: 1, -1: 1}.get(case.group) or case.k // case.group
    rows = 1 if case.group == -1 else case.n
    codes = torch.randint(0, 2**case.bits, (case.n, case.k), generator=generator, dtype=torch.uint8)
    codes.flatten()[: 2**case.bits] = torch.arange(2**case.bits, dtype=torch.uint8)[: codes.numel()]
    scale = (torch.rand(rows, groups, generator=generator) * 0.02 + 0.005).bfloat16()
    zero = None if case.symmetric else torch.randint(0, 2**case.bits, (rows, groups), generator=generator).float()
    book = torch.linspace(-1, 1, 2**case.bits) ** 3 if case.codebook else None
    return LowBitWeight(codes, scale, zero, case.bits, book)
