"""Op: one operation as its plain PyTorch meaning, its forms on GPU and CPU, cases and cost; the meaning of a low-bit weight; discovery and choice."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.floats import LARGEST, nearest


class Activation(NamedTuple):
    """How the inputs [M, K] of a product are rounded. kind: "int8" or a float of kernels/floats.py; per: "token" (one scale a row), "tensor", or for
    floats the consecutive inputs of a row that share a scale: "block" (128, float32), "mx" (32, a power of two: OCP MX 1.0, section 6.3) or
    "nvfp4" (16, an E4M3 number times `scale`).

    scale: a static scale found beforehand (per tensor; for nvfp4 what its scales are multiples of), 0 for a dynamic one. threshold: input columns with
    a magnitude of at least it are left out of the rounding and multiplied in 16 bits (LLM.int8, arXiv 2208.07339, section 3.2); 0 for none. columns:
    the same for columns named beforehand; then nothing depends on the data at hand, and a GPU need not wait for it.
    """

    kind: str
    per: str = "token"
    scale: float = 0.0
    threshold: float = 0.0
    columns: tuple[int, ...] = ()

    def looks(self) -> bool:
        """Whether outlier columns are looked for in the data at hand: a GPU then makes the host wait for how many there are."""
        return self.threshold > 0 and not self.columns

    def name(self) -> str:
        """Such as "int8 per token"."""
        return f"{self.kind} per {self.per}{' block' if self.small_blocks() else ', static' if self.scale else ''}"

    def small_blocks(self) -> bool:
        """Whether they are block floats, whose products are weight-only ones of the rounded values."""
        return self.per in ("mx", "nvfp4")


class Nested(NamedTuple):
    """Scales that are codes themselves: scale = codebook[code] * outer[block // run] + offset, blocks counted row by row.

    codes [N, K/G] uint8; outer [ceil(N K / G / run)], codebook [256] and offset [] float32.
    """

    codes: Tensor
    outer: Tensor
    codebook: Tensor
    offset: Tensor
    run: int = 256


class LowBitWeight(NamedTuple):
    """A weight [N, K] in low bits: w = (code - zero) * scale, or codebook[code] * scale; and how the inputs it meets are rounded.

    codes [N, K] uint8; scale [R, K/G], bfloat16 or float32, R = N, or 1, or N / 128 where 128 rows share one; zero: float32 of scale's
    shape, or None for 2**(bits-1); codebook [2**bits] float32 or None; activation: None for 16-bit inputs. unit [] float32 and nested say
    how the scales may be stored in 8 bits: as E4M3 numbers times the unit, or as codes; None for neither.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    codebook: Tensor | None = None
    activation: Activation | None = None
    unit: Tensor | None = None
    nested: Nested | None = None


class Packed(NamedTuple):
    """An operand as one form keeps it: named tensors that stay resident, and constants the form needs to run."""

    tensors: dict[str, Tensor]
    meta: tuple

    def nbytes(self) -> int:
        """Bytes that stay resident."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@dataclass(frozen=True)
class Form:
    """One way of running an op: pack its operand once, run many times.

    The operand is what stays the same between calls: a weight (LowBitWeight), a rotation, a cache. refuses(operand): "" when this form serves
    it, else a clause that says why not. run(x bf16/fp16/fp32, packed) -> the result, in x's dtype where it is not codes. For a weight x is
    [M, K] and the result [M, N]. rounds_to: the dtype that results pass through when it is not x's. capability: the least compute capability
    of a GPU, times ten; 0 for any. crossing(packed): the row count from which it runs another way, which `many` names; None for none.
    rounded(x, codes, scale, packed): the same on inputs that were rounded per token elsewhere, codes [M, K] and scale [M, 1]; x [M, K] gives the dtype.
    """

    name: str
    refuses: Callable[[Any], str]
    pack: Callable[[Any], Packed]
    run: Callable[[Tensor, Packed], Any]
    note: str = ""
    rounds_to: torch.dtype | None = None
    capability: int = 0
    many: str = ""
    crossing: Callable[[Packed], int] | None = None
    rounded: Callable[[Tensor, Tensor, Tensor, Packed], Tensor] | None = None

    def runs(self, packed: Packed, m: int) -> str:
        """The name of what multiplies m rows."""
        return self.many if self.crossing is not None and m >= self.crossing(packed) else self.name


class Baseline(NamedTuple):
    """A 16-bit operation an op is timed against: its name, its own operand in bfloat16, and how it runs."""

    name: str
    tensors: dict[str, Tensor]
    run: Callable[[Tensor, dict[str, Tensor]], Any]
    only: str = ""  # the device's type, where it runs on no other


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation on inputs x and an operand in low bits.

    gpu, cpu: its forms, the preferred one first. cases: shapes and formats that it is checked on; timed: those that it is timed on.
    problem(case, generator) -> (x float32, operand): random and complete. reference(x, operand) -> float64: what the op means, in plain
    PyTorch. value(result) -> Tensor: the numbers a result stands for, when it is codes. flops(case): floating-point operations.
    baselines(case, generator): ways to do the 16-bit operation it replaces, of which the fastest counts. bits: where the operand is a weight, the widths of
    codes it stores without loss, narrowest and widest. activation: the kind of rounded inputs it multiplies ("int8", "fp8" or "block float"), "" for
    16-bit ones.
    """

    name: str
    title: str
    gpu: tuple[Form, ...]
    cpu: tuple[Form, ...]
    cases: tuple[Any, ...]
    timed: tuple[Any, ...] = ()
    problem: Callable[[Any, torch.Generator], tuple[Tensor, Any]]
    reference: Callable[[Tensor, Any], Tensor]
    flops: Callable[[Any], float]
    baselines: Callable[[Any, torch.Generator], Sequence[Baseline]]
    value: Callable[[Any], Tensor] = lambda result: result
    bits: tuple[int, int] | None = None
    activation: str = ""

    def forms(self) -> tuple[Form, ...]:
        """Every form once, those of the GPU first."""
        return tuple(dict.fromkeys((*self.gpu, *self.cpu)))


def per_group(values: Tensor, n: int, k: int) -> Tensor:
    """Scale or zero, [R, groups], repeated to one value a weight, [N or 1, K] float32."""
    rows = values if values.shape[0] in (1, n) else values.repeat_interleave(n // values.shape[0], dim=0)
    return rows.float().repeat_interleave(k // values.shape[1], dim=1)


LIMIT = {"int8": 127.0, **LARGEST}
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


BLOCK = 128  # inputs of a row that share a scale per block; a weight's block is BLOCK x BLOCK
BLOCKS = {"block": BLOCK, "mx": 32, "nvfp4": 16}


def power_of_two(absmax: Tensor, kind: str) -> Tensor:
    """The scales that OCP MX 1.0 (section 6.3) gives blocks with these largest magnitudes, float32: 2**(floor(log2 absmax) - e), 2**e the power of two
    in the kind's largest number, at least 2**-127 as E8M0 has it. Infinite for a block that holds infinities or NaN: all its values are then NaN.
    """
    power = (absmax.view(torch.int32) & 0x7F800000).view(torch.float32)
    return (power * 2.0 ** (1 - math.frexp(LIMIT[kind])[1])).clamp_(min=2.0**-127)


def factor(a: Activation) -> float:
    """What the values that forms give for block floats are multiplied by to be the rounded inputs: 1 to 2, a factor of the weight's scales. NVFP4's float32
    factor is split, the power of two in it stays with the values.
    """
    return 2 * math.frexp(a.scale)[0] if a.scale else 1.0


def round_to_blocks(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """(elements [M, K / size, size], scales [M, K / size, 1]) float32 of inputs [M, K] rounded to block floats."""
    blocks = x.float().unflatten(1, (-1, BLOCKS[a.per]))
    absmax = blocks.abs().amax(-1, keepdim=True)
    if a.per == "mx":
        scale = divisor = power_of_two(absmax, a.kind)
    else:
        scale = nearest(absmax / LIMIT[a.kind] / a.scale, "e4m3") * a.scale + (absmax - absmax)  # NaN where there are infinities, as above
        divisor = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return nearest(blocks / divisor, a.kind), scale


def largest(x: Tensor) -> Tensor:
    """The largest magnitude, 0 of no numbers, []."""
    return x.abs().amax() if x.numel() else x.new_zeros(())


def round_activation(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """(codes [M, K] int8, float8, or of block floats the elements in float32; scale [M, 1], [1, 1] or [M, K / block] float32) with x = codes * scale;
    absmax scales or the given one. int8 has no code for infinities and NaN: the scale of what holds them is not finite.
    """
    x = x.float()
    if a.small_blocks():
        elements, scale = round_to_blocks(x, a)
        return elements.flatten(1), scale.squeeze(-1)
    if a.per == "block":
        codes, scale = round_activation(x.reshape(-1, BLOCK), a._replace(per="token"))
        return codes.view(x.shape), scale.view(len(x), x.shape[1] // BLOCK)
    if a.scale:
        scale = a.scale + (x - x).amax(-1, keepdim=True)
    else:
        absmax = x.abs().amax(-1, keepdim=True) if a.per == "token" else largest(x).view(1, 1)
        scale = torch.where(absmax == 0, 1.0, absmax / LIMIT[a.kind])
    codes = (x / scale).clamp(-LIMIT[a.kind], LIMIT[a.kind])
    return (codes.round().to(torch.int8) if a.kind == "int8" else codes.to(FLOAT8[a.kind])), scale


def split_outliers(x: Tensor, a: Activation) -> tuple[Tensor, Tensor | None]:
    """(x with its outlier columns zeroed, indices of those columns or None). x [M, K]."""
    if a.columns:
        columns = torch.tensor(a.columns, device=x.device)
    elif a.threshold:
        columns = (x.abs() >= a.threshold).any(0).nonzero().flatten()
    else:
        return x, None
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
    codes = codes.float()
    y = (codes * per_group(scale, *codes.shape)) @ weight.T if w.activation.per in BLOCKS else codes @ weight.T * scale
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

    names = [m.name for m in pkgutil.iter_modules(kernels.__path__) if not m.ispkg and m.name != "__main__"]
    found = [getattr(importlib.import_module(f"kernels.{name}"), "OP", None) for name in names]
    return {op.name: op for op in found if op is not None}


def compute_capability(device: torch.device) -> int:
    """Ten times the GPU's compute capability, 0 where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def serving(op: Op, operand: Any, device: torch.device) -> tuple[Form | None, list[str]]:
    """(an op's first form that serves this operand on a device, None when none does; why those before it do not)."""
    able, reasons = compute_capability(device), []
    for form in op.gpu if device.type == "cuda" else op.cpu:
        refusal = f"needs compute capability {form.capability / 10}" if 0 < able < form.capability else form.refuses(operand)
        if not refusal:
            return form, reasons
        reasons.append(f"{op.name} ({form.name}): {refusal}")
    return None, reasons


def choose(weight: LowBitWeight, device: torch.device) -> tuple[str, Form, str]:
    """(op name, form, why) for a weight on a device: the narrowest op with a fast form that serves it, else the reference and why nothing did."""
    reasons = []
    a = weight.activation
    wanted = "" if a is None else "block float" if a.small_blocks() else "int8" if a.kind == "int8" else "fp8"
    for op in sorted((op for op in ops().values() if op.bits), key=lambda op: op.bits):
        if weight.bits > op.bits[1] or wanted != op.activation:
            continue
        form, refused = serving(op, weight, device)
        if form is not None and form is not REFERENCE:
            return op.name, form, ""
        reasons += refused
    return "dequantize + linear", REFERENCE, "; ".join(reasons) or f"no op multiplies {wanted} inputs"
