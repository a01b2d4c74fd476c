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


class Activation(NamedTuple):
    """How the inputs [M, K] of a product are rounded. kind: "int8", "e4m3" or "e5m2"; per: "token" (one scale a row) or "tensor".

    scale: a static scale found beforehand (per tensor only), 0 for a dynamic one. threshold: input columns with a magnitude above it are
    left out of the rounding and multiplied in 16 bits (LLM.int8, arXiv 2208.07339, section 3.2); 0 for none.
    """

    kind: str
    per: str = "token"
    scale: float = 0.0
    threshold: float = 0.0

    def name(self) -> str:
        """Such as "int8 per token"."""
        return f"{self.kind} per {self.per}{', static' if self.scale else ''}"


class LowBitWeight(NamedTuple):
    """A weight [N, K] in low bits: w = (code - zero) * scale, or codebook[code] * scale; and how the inputs it meets are rounded.

    codes [N, K] uint8; scale [R, K/G], bfloat16 or float32, R = N, or 1, or N / 128 where 128 rows share one; zero: float32 of scale's
    shape, or None for 2**(bits-1); codebook [2**bits] float32 or None; activation: None for 16-bit inputs.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    codebook: Tensor | None = None
    activation: Activation | None = None


class Packed(NamedTuple):
    """A weight as one form keeps it: named tensors that stay resident, and constants the form needs to run."""

    tensors: dict[str, Tensor]
    meta: tuple


@dataclass(frozen=True)
class Form:
    """One way of running an op: pack once, run many times.

    refuses(weight): "" when this form serves the weight, else a clause that says why not. run(x [M, K] bf16/fp16/fp32, packed) -> [M, N]
    in x's dtype. rounds_to: the dtype that results pass through when it is not x's.
    """

    name: str
    refuses: Callable[[LowBitWeight], str]
    pack: Callable[[LowBitWeight], Packed]
    run: Callable[[Tensor, Packed], Tensor]
    note: str = ""
    rounds_to: torch.dtype | None = None


@dataclass(frozen=True)
class Case:
    """One shape and format an op is checked on. group 0 is one scale a row, -1 one scale in all. fractional: zeros that are no integers, as
    HQQ finds them.
    """

    m: int
    n: int
    k: int
    bits: int
    group: int
    symmetric: bool = True
    codebook: bool = False
    activation: Activation | None = None
    fractional: bool = False


@dataclass(frozen=True)
class Op:
    """An operation y = x W^T with W in low bits. bits: the widths it stores without loss, narrowest and widest. activation: the kind of
    rounded inputs it multiplies ("int8" or "fp8"), "" for 16-bit ones.
    """

    name: str
    title: str
    bits: tuple[int, int]
    triton: Form
    cpu: Form
    cases: tuple[Case, ...]
    activation: str = ""

    def forms(self) -> tuple[Form, ...]:
        return self.triton, self.cpu, REFERENCE


def per_group(values: Tensor, n: int, k: int) -> Tensor:
    """Scale or zero, [R, groups], repeated to one value a weight, [N or 1, K] float32."""
    rows = values if values.shape[0] in (1, n) else values.repeat_interleave(n // values.shape[0], dim=0)
    return rows.float().repeat_interleave(k // values.shape[1], dim=1)


LIMIT = {"int8": 127.0, "e4m3": 448.0, "e5m2": 57344.0}
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def round_activation(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """(codes [M, K] int8 or float8, scale [M, 1] or [1, 1] float32) with x = codes * scale; absmax scales (dynamic) or the given one."""
    x = x.float()
    if a.scale:
        scale = torch.full((1, 1), a.scale, device=x.device)
    else:
        absmax = x.abs().amax(-1, keepdim=True) if a.per == "token" else x.abs().amax().view(1, 1)
        scale = torch.where(absmax > 0, absmax / LIMIT[a.kind], 1.0)
    codes = (x / scale).clamp(-LIMIT[a.kind], LIMIT[a.kind])
    return (codes.round().to(torch.int8) if a.kind == "int8" else codes.to(FLOAT8[a.kind])), scale


def split_outliers(x: Tensor, a: Activation) -> tuple[Tensor, Tensor | None]:
    """(x with its outlier columns zeroed, indices of those columns or None). x [M, K]."""
    if not a.threshold:
        return x, None
    columns = (x.abs() > a.threshold).any(0).nonzero().flatten()
    return (x.index_fill(1, columns, 0.0), columns) if columns.numel() else (x, None)


def dequantize(w: LowBitWeight) -> Tensor:
    """[N, K] float32: the one definition of what a low-bit weight means."""
    n, k = w.codes.shape
    if w.codebook is not None:
        return w.codebook[w.codes.long()] * per_group(w.scale, n, k)
    zero = 2 ** (w.bits - 1) if w.zero is None else per_group(w.zero, n, k)
    return (w.codes.float() - zero) * per_group(w.scale, n, k)


def multiply(x: Tensor, w: LowBitWeight) -> Tensor:
    """x [M, K] -> x W^T [M, N] float32, inputs rounded as the weight asks: the one definition of what every op computes."""
    weight = dequantize(w)
    if w.activation is None:
        return x.float() @ weight.T
    rest, columns = split_outliers(x.float(), w.activation)
    codes, scale = round_activation(rest, w.activation)
    y = codes.float() @ weight.T * scale
    return y if columns is None else y + x.float()[:, columns] @ weight[:, columns].T


def _reference_pack(w: LowBitWeight) -> Packed:
    optional = {"zero": w.zero, "codebook": w.codebook}
    return Packed({"codes": w.codes, "scale": w.scale} | {name: t for name, t in optional.items() if t is not None}, (w.bits, w.activation))


def _reference_run(x: Tensor, packed: Packed) -> Tensor:
    t = packed.tensors
    w = LowBitWeight(t["codes"], t["scale"], t.get("zero"), packed.meta[0], t.get("codebook"), packed.meta[1])
    if w.activation is not None:
        return multiply(x, w).to(x.dtype)
    return torch.nn.functional.linear(x, dequantize(w).to(x.dtype))


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
    wanted = "" if weight.activation is None else "int8" if weight.activation.kind == "int8" else "fp8"
    for op in sorted(ops().values(), key=lambda op: op.bits):
        if weight.bits > op.bits[1] or wanted != op.activation:
            continue
        form = op.triton if device.type == "cuda" else op.cpu
        refusal = form.refuses(weight)
        if not refusal:
            return op.name, form, ""
        reasons.append(f"{op.name} ({form.name}): {refusal}")
    return "dequantize + linear", REFERENCE, "; ".join(reasons) or f"no op multiplies {wanted} inputs"


def random_weight(case: Case, generator: torch.Generator) -> LowBitWeight:
    """A weight of a case's shape and format in which every code occurs."""
    groups = {0: 1, -1: 1}.get(case.group) or case.k // case.group
    rows = 1 if case.group == -1 else case.n
    codes = torch.randint(0, 2**case.bits, (case.n, case.k), generator=generator, dtype=torch.uint8)
    codes.flatten()[: 2**case.bits] = torch.arange(2**case.bits, dtype=torch.uint8)[: codes.numel()]
    scale = (torch.rand(rows, groups, generator=generator) * 0.02 + 0.005).bfloat16()
    zero = None if case.symmetric else torch.randint(0, 2**case.bits, (rows, groups), generator=generator).float()
    if case.fractional:
        zero = (zero + torch.rand(zero.shape, generator=generator)).half().float()
    book = torch.linspace(-1, 1, 2**case.bits) ** 3 if case.codebook else None
    if case.activation is not None and case.activation.kind in FLOAT8:
        book = float8_values(case.activation.kind)
        codes = codes.where(book[codes.long()] != 0, 0)  # no infinities and no NaN
    return LowBitWeight(codes, scale, zero, case.bits, book, case.activation)


@cache
def float8_values(kind: str) -> Tensor:
    """The value of every float8 bit pattern, [256] float32; patterns that are no number are 0."""
    return torch.arange(256, dtype=torch.uint8).view(FLOAT8[kind]).float().nan_to_num(0.0, 0.0, 0.0)
