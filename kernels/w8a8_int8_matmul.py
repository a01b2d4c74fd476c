"""Matmul of int8 inputs with int8 weights: inputs are rounded per token or per tensor, products are summed in int32, scales come last.

y[m, n] = scale_x[m] scale_w[n] sum_k codes_x[m, k] codes_w[n, k]: exact up to the two scales. Outlier columns of the inputs, named beforehand or
found by a threshold, are taken out and multiplied in 16 bits with the same, dequantized weights (LLM.int8).

A CPU form is chosen only where extreme codes come out of it exactly. x86 without VNNI adds two products of an unsigned and a signed byte in 16 bits,
which saturate: 2 * 255 * 127 does not fit. With positive and negative inputs apart no input exceeds 127, and two products fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from kernels import native, scaled_matmul
from kernels.native_round import CODES, readable, round_here, rounding
from kernels.op import Activation, Form, LowBitWeight, Packed, dequantize, split_outliers
from kernels.product import Case, product_op


def _refuses(w: LowBitWeight) -> str:
    if w.codebook is not None or w.zero is not None or w.bits != 8:
        return "integer products take symmetric 8-bit weights"
    return "" if w.scale.shape[1] == 1 and w.scale.shape[0] in (1, w.codes.shape[0]) else "integer products take one scale a row, not groups"


def _pack(w: LowBitWeight) -> Packed:
    """codes [N, K] int8, scale [N] float32, and what `scaled_matmul.kept_columns` adds; meta = (activation,)."""
    n = w.codes.shape[0]
    codes = (w.codes.to(torch.int16) - 128).to(torch.int8).contiguous()
    kept = scaled_matmul.kept_columns(codes, w.activation)
    return Packed({"codes": codes, "scale": w.scale.float().expand(n, 1)[:, 0].contiguous()} | kept, (w.activation,))


def _triton_run(x: Tensor, packed: Packed) -> Tensor:
    activation, t = packed.meta[0], packed.tensors
    if not activation.looks():
        return scaled_matmul.run(x, packed)
    rest, columns = split_outliers(x, activation)
    y = scaled_matmul.run(rest, packed).float()
    if columns is not None:
        y += x[:, columns].float() @ (t["codes"][:, columns].float() * t["scale"][:, None]).T
    return y.to(x.dtype)


Product = Callable[[Tensor, dict[str, Tensor]], Tensor]  # int8 [M, K], a form's packed tensors -> float32 [M, N], the int32 sums


def _int_mm(rounded: Tensor, t: dict[str, Tensor]) -> Tensor:
    return torch._int_mm(rounded, t["codes"].T).float()


def _onednn(rounded: Tensor, t: dict[str, Tensor]) -> Tensor:
    """oneDNN multiplies unsigned by signed bytes: 128 stands for 0."""
    return _unsigned(rounded.view(torch.uint8) ^ 128, 128, rounded, t)


def _signs_apart(rounded: Tensor, t: dict[str, Tensor]) -> Tensor:
    """Positive and negative inputs as rows of their own, one product of 2 M rows: no more than 2 * 127 * 128 is added in 16 bits."""
    apart = torch.cat([rounded.clamp(min=0), rounded.clamp(max=0).neg()])
    y = _unsigned(apart.view(torch.uint8), 0, apart, t)
    return y[: len(rounded)] - y[len(rounded) :]


def _unsigned(inputs: Tensor, zero: int, signed: Tensor, t: dict[str, Tensor]) -> Tensor:
    """uint8 [M, K] minus zero times oneDNN's blocked [K, N]; signed: the same as int8 where oneDNN has no primitive for this shape or this CPU."""
    try:
        return torch.ops.onednn.qlinear_pointwise(inputs, 1.0, zero, t["codes"], t["one"], t["none"], None, 1.0, 0, torch.float32, "none", [], "")
    except RuntimeError:
        return torch._int_mm(signed, t["codes"].to_dense()).float()


@cache
def exact(product: Product, pack: Callable[[LowBitWeight], Packed]) -> bool:
    """Whether a product of extreme codes comes out of a form exactly on this CPU. Tried once a process, for few and for many rows and for whole and
    cut blocks, because a library may take another kernel for another shape.
    """
    generator = torch.Generator().manual_seed(0)
    for m, (n, k) in itertools.product((1, 5, 16, 130), ((64, 64), (37, 80))):
        x, codes = (torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 255 for shape in ((m, k), (n, k)))
        x[0], codes[0], codes[1] = 255, 255, 0  # all of one sign: the largest sums
        rounded, weight = (x.to(torch.int16) - 128).clamp(min=-127).to(torch.int8), LowBitWeight(codes, torch.ones(n, 1), None, 8, None, TENSOR)
        if not torch.equal(product(rounded, pack(weight).tensors).double(), rounded.double() @ dequantize(weight).double().T):
            return False
    return True


def _run(product: Product, x: Tensor, packed: Packed) -> Tensor:
    t, activation = packed.tensors, packed.meta[0]
    rest, columns = split_outliers(x, activation)
    rounded, scale_x = round_here(rest, activation)
    y = product(rounded, t) * scale_x
    if columns is not None:
        kept = t["kept"] if activation.columns else t["codes"][:, columns]  # found at run time, any column may be one
        y += x[:, columns].float() @ kept.T.float()
    return (y * t["scale"]).to(x.dtype)


def _run_rounded(product: Product, x: Tensor, rounded: Tensor, scale_x: Tensor, packed: Packed) -> Tensor:
    t = packed.tensors
    return (product(rounded, t) * scale_x * t["scale"]).to(x.dtype)


def _onednn_pack(w: LowBitWeight) -> Packed:
    """As `_pack`, codes in oneDNN's blocked layout [K, N], and a scale of one and a zero of none for each output."""
    packed = _pack(w)
    t = packed.tensors
    blocked = torch.ops.onednn.qlinear_prepack(t["codes"], None)
    return packed._replace(tensors=t | {"codes": blocked, "one": torch.ones_like(t["scale"]), "none": torch.zeros(len(t["scale"]), dtype=torch.int32)})


def _onednn_refuses(product: Product, inexact: str, w: LowBitWeight) -> str:
    if w.activation.looks():
        return "packed for oneDNN, columns cannot be picked out at run time"
    if refusal := _refuses(w) or ("" if torch.backends.mkldnn.is_available() else "this torch was built without oneDNN"):
        return refusal
    return "" if exact(product, _onednn_pack) else inexact


def _int_mm_refuses(w: LowBitWeight) -> str:
    return _refuses(w) or ("" if exact(_int_mm, _pack) else "this CPU's torch._int_mm gives other sums than int32's")


def _cpu_form(name: str, product: Product, refuses: Callable[[LowBitWeight], str], pack: Callable[[LowBitWeight], Packed], note: str) -> Form:
    return Form(name, refuses, pack, partial(_run, product), note, rounded=partial(_run_rounded, product))


def _native_refuses(w: LowBitWeight) -> str:
    return _refuses(w) or native.library()[1]


def _native_pack(w: LowBitWeight) -> Packed:
    """As `native.int8_pack` keeps it, and the named outlier columns [C] int32; meta = (how the rest is rounded, its own, the threshold)."""
    packed, a = native.int8_pack(w.codes, w.scale.float().expand(len(w.codes), 1)[:, 0].contiguous()), w.activation
    named = {"columns": torch.tensor(a.columns, dtype=torch.int32)} if a.columns else {}
    return Packed(packed.tensors | named, (a._replace(columns=(), threshold=0.0), packed.meta, a.threshold))


def _native_run(x: Tensor, packed: Packed) -> Tensor:
    (activation, meta, threshold), t, read, apart = packed.meta, packed.tensors, readable(x), None
    if "columns" in t:
        apart = native.outliers(t["columns"].data_ptr(), len(t["columns"]), 0.0)
    elif threshold:
        apart = native.outliers(None, 0, threshold)
    y = native.int8_product(read, Packed(t, meta), rounding(activation, x.shape[1], CODES), apart=apart)
    return y if y.dtype is x.dtype else y.to(x.dtype)


def _native_run_rounded(x: Tensor, rounded: Tensor, scale_x: Tensor, packed: Packed) -> Tensor:
    like = x if x.dtype is torch.bfloat16 else scale_x
    return native.int8_product(rounded, Packed(packed.tensors, packed.meta[1]), scale=scale_x, like=like).to(x.dtype)


SATURATES = "this CPU's oneDNN adds int8 products in 16 bits and saturates"
TOKEN, TENSOR = Activation("int8"), Activation("int8", "tensor")

OP = product_op(
    "w8a8_int8_matmul",
    "y = x W^T, x and W in int8",
    gpu=(Form("triton", _refuses, _pack, _triton_run, "int32 sums", rounded=scaled_matmul.run_rounded),),
    cpu=(
        Form("native", _native_refuses, _native_pack, _native_run, "int32 sums; inputs are rounded in the same call", rounded=_native_run_rounded),
        _cpu_form("oneDNN", _onednn, partial(_onednn_refuses, _onednn, SATURATES), _onednn_pack, "int32 sums"),
        _cpu_form(
            "oneDNN by sign", _signs_apart, partial(_onednn_refuses, _signs_apart, f"{SATURATES} even where signs are apart"), _onednn_pack,
            "int32 sums on CPUs without VNNI: positive and negative inputs as rows of their own",
        ),
        _cpu_form("cpu", _int_mm, _int_mm_refuses, _pack, "torch's integer matmul, int32 sums"),
    ),
    bits=(8, 8),
    activation="int8",
    timed=(Case(0, 0, 0, 8, 0, activation=TOKEN), Case(0, 0, 0, 8, 0, activation=Activation("int8", columns=tuple(range(0, 640, 20))))),
    cases=(
        *(Case(m, 64, 256, 8, g, activation=a) for m in (1, 5, 33) for g in (0, -1) for a in (TOKEN, TENSOR)),
        Case(7, 37, 80, 8, 0, activation=Activation("int8", "tensor", 0.02)), Case(2, 64, 64, 8, 0, activation=TOKEN),
        Case(17, 48, 384, 8, 0, activation=Activation("int8", threshold=2.5)),
        *(Case(m, 48, 384, 8, 0, activation=Activation("int8", per, columns=(3, 77, 200))) for m in (1, 17) for per in ("token", "tensor")),
    ),
)  # fmt: skip
