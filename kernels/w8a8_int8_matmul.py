"""Matmul of int8 inputs with int8 weights: inputs are rounded per token or per tensor, products are summed in int32, scales come last.

y[m, n] = scale_x[m] scale_w[n] sum_k codes_x[m, k] codes_w[n, k]: exact up to the two scales. Outlier columns of the inputs, named beforehand or
found by a threshold, are taken out and multiplied in 16 bits with the same, dequantized weights (LLM.int8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import scaled_matmul
from kernels.op import Activation, Form, LowBitWeight, Packed, round_activation, split_outliers
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
    if activation.columns or not activation.threshold:
        return scaled_matmul.run(x, packed)
    rest, columns = split_outliers(x, activation)  # waits for the GPU: how many columns there are depends on the data
    y = scaled_matmul.run(rest, packed).float()
    if columns is not None:
        y += x[:, columns].float() @ (t["codes"][:, columns].float() * t["scale"][:, None]).T
    return y.to(x.dtype)


def _plain_run(x: Tensor, packed: Packed) -> Tensor:
    """torch's integer matmul, for outliers found at run time: any column may be one."""
    codes, scale, activation = packed.tensors["codes"], packed.tensors["scale"], packed.meta[0]
    rest, columns = split_outliers(x, activation)
    rounded, scale_x = round_activation(rest, activation)
    y = torch._int_mm(rounded, codes.T).float() * scale_x * scale
    if columns is not None:
        y += x[:, columns].float() @ (codes[:, columns].float() * scale[:, None]).T
    return y.to(x.dtype)


def _onednn_refuses(w: LowBitWeight) -> str:
    if w.activation.threshold and not w.activation.columns:
        return "packed for oneDNN, columns cannot be picked out at run time"
    return _refuses(w) or ("" if torch.backends.mkldnn.is_available() else "this torch was built without oneDNN")


def _onednn_pack(w: LowBitWeight) -> Packed:
    """As `_pack`, codes in oneDNN's blocked layout [K, N], and a scale of one and a zero of none for each output."""
    packed = _pack(w)
    t = packed.tensors
    blocked = torch.ops.onednn.qlinear_prepack(t["codes"], None)
    return packed._replace(tensors=t | {"codes": blocked, "one": torch.ones_like(t["scale"]), "none": torch.zeros(len(t["scale"]), dtype=torch.int32)})


def _onednn_run(x: Tensor, packed: Packed) -> Tensor:
    t, activation = packed.tensors, packed.meta[0]
    rest, columns = split_outliers(x, activation)
    rounded, scale_x = round_activation(rest, activation)
    y = integer_product(rounded, t["codes"], t["one"], t["none"]) * scale_x
    if columns is not None:
        y += x[:, columns].float() @ t["kept"].T.float()
    return (y * t["scale"]).to(x.dtype)


def _onednn_rounded(x: Tensor, rounded: Tensor, scale_x: Tensor, packed: Packed) -> Tensor:
    t = packed.tensors
    return (integer_product(rounded, t["codes"], t["one"], t["none"]) * scale_x * t["scale"]).to(x.dtype)


def integer_product(rounded: Tensor, blocked: Tensor, one: Tensor, none: Tensor) -> Tensor:
    """int8 [M, K] times oneDNN's blocked [K, N] -> float32 [M, N], the int32 sums. oneDNN multiplies unsigned by signed bytes: 128 stands for 0."""
    unsigned = rounded.view(torch.uint8) ^ 128
    try:
        return torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, 128, blocked, one, none, None, 1.0, 0, torch.float32, "none", [], "")
    except RuntimeError:  # it has no primitive for this shape or this CPU
        return torch._int_mm(rounded, blocked.to_dense()).float()


TOKEN, TENSOR = Activation("int8"), Activation("int8", "tensor")

OP = product_op(
    "w8a8_int8_matmul",
    "y = x W^T, x and W in int8",
    gpu=(Form("triton", _refuses, _pack, _triton_run, "int32 sums", rounded=scaled_matmul.run_rounded),),
    cpu=(
        Form("oneDNN", _onednn_refuses, _onednn_pack, _onednn_run, "int32 sums", rounded=_onednn_rounded),
        Form("cpu", _refuses, _pack, _plain_run, "torch's integer matmul, int32 sums"),
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
