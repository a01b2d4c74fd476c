"""Matmul of int8 inputs with int8 weights: inputs are rounded per token or per tensor, products are summed in int32, scales come last.

y[m, n] = scale_x[m] scale_w[n] sum_k codes_x[m, k] codes_w[n, k]: exact up to the two scales. Input columns beyond a threshold are taken
out and multiplied in 16 bits with the same, dequantized weights (LLM.int8).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.op import Activation, Case, Form, LowBitWeight, Op, Packed, round_activation, split_outliers


@triton.jit
def int8_kernel(
    x_ptr, w_ptr, scale_x_ptr, scale_w_ptr, y_ptr,  # [M, K] i8, [N, K] i8, [M] f32, [N] f32, [M, N] f32
    m_size, n_size, k_size,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M, BLOCK_N] tile of y a program."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_n, mask_m = n < n_size, m < m_size
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, k_size, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * k_size + k[None, :], mask=mask_m[:, None] & (k < k_size)[None, :], other=0)
        w = tl.load(w_ptr + n[None, :] * k_size + k[:, None], mask=mask_n[None, :] & (k < k_size)[:, None], other=0)
        acc += tl.dot(x, w, out_dtype=tl.int32)
    scale_x = tl.load(scale_x_ptr + m, mask=mask_m, other=0.0)
    scale_w = tl.load(scale_w_ptr + n, mask=mask_n, other=0.0)
    y = acc.to(tl.float32) * scale_x[:, None] * scale_w[None, :]
    tl.store(y_ptr + m[:, None] * n_size + n[None, :], y, mask=mask_m[:, None] & mask_n[None, :])


def _triton_product(x: Tensor, scale_x: Tensor, w: Tensor, scale_w: Tensor) -> Tensor:
    (m, k), n = x.shape, w.shape[0]
    y = torch.empty(m, n, dtype=torch.float32, device=x.device)
    rows, columns = (16 if m <= 16 else 64), 64
    int8_kernel[(triton.cdiv(n, columns), triton.cdiv(m, rows))](
        x, w, scale_x.expand(m, 1).contiguous(), scale_w, y, m, n, k, BLOCK_M=rows, BLOCK_N=columns, BLOCK_K=128
    )
    return y


def _torch_product(x: Tensor, scale_x: Tensor, w: Tensor, scale_w: Tensor) -> Tensor:
    return torch._int_mm(x, w.T).float() * scale_x * scale_w


def _refuses(w: LowBitWeight) -> str:
    if w.codebook is not None or w.zero is not None or w.bits != 8:
        return "integer products take symmetric 8-bit weights"
    return "" if w.scale.shape[1] == 1 and w.scale.shape[0] in (1, w.codes.shape[0]) else "integer products take one scale a row, not groups"


def _pack(w: LowBitWeight) -> Packed:
    """codes [N, K] int8, scale [N] float32; meta = (activation,)."""
    n = w.codes.shape[0]
    codes = (w.codes.to(torch.int16) - 128).to(torch.int8).contiguous()
    return Packed({"codes": codes, "scale": w.scale.float().expand(n, 1)[:, 0].contiguous()}, (w.activation,))


def _run(product):
    def run(x: Tensor, packed: Packed) -> Tensor:
        codes, scale, activation = packed.tensors["codes"], packed.tensors["scale"], packed.meta[0]
        rest, columns = split_outliers(x, activation)
        y = product(*round_activation(rest, activation), codes, scale)
        if columns is not None:
            y += x[:, columns].float() @ (codes[:, columns].float() * scale[:, None]).T
        return y.to(x.dtype)

    return run


TOKEN, TENSOR = Activation("int8"), Activation("int8", "tensor")

OP = Op(
    name="w8a8_int8_matmul",
    title="y = x W^T, x and W in int8",
    bits=(8, 8),
    triton=Form("triton", _refuses, _pack, _run(_triton_product), "int32 sums"),
    cpu=Form("cpu", _refuses, _pack, _run(_torch_product), "torch's integer matmul, int32 sums"),
    cases=(
        *(Case(m, 64, 256, 8, g, activation=a) for m in (1, 5, 33) for g in (0, -1) for a in (TOKEN, TENSOR)),
        Case(7, 37, 80, 8, 0, activation=Activation("int8", "tensor", 0.02)),
        Case(17, 48, 384, 8, 0, activation=Activation("int8", threshold=2.5)),
    ),
    activation="int8",
)  # fmt: skip
