"""Others' kernels for the same products, where they can be imported: torch's own low-bit operators, torchao, gemlite, humming and bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cpu_forms import COPY
from kernels.native import NATIVE
from kernels.op import REFERENCE, Activation, LowBitWeight, dequantize, ops, round_activation
from kernels.round_inputs import round_inputs

Made = tuple[dict[str, Tensor], Callable[[Tensor, dict[str, Tensor]], Any]]


class Peer(NamedTuple):
    """name, the op it competes with, and make(x [M, K] bfloat16, weight) -> (tensors, run), or a clause that says why it does not compete."""

    name: str
    op: str
    make: Callable[[Tensor, LowBitWeight], Made | str]


def tinygemm(x: Tensor, w: LowBitWeight) -> Made | str:
    """torch's 4-bit matmul for GPUs: bf16, groups of 32 to 256, w = (q - 8) s + z."""
    n, k = w.codes.shape
    if x.device.type != "cuda":
        return "needs a CUDA GPU"
    if w.bits != 4 or w.codebook is not None or w.scale.shape[1] == 1 or k % 128 or n % 8:
        return "takes 4-bit integers in groups"
    codes = w.codes.to(x.device)
    packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8), 8)
    zero = torch.zeros_like(w.scale) if w.zero is None else (8 - w.zero) * w.scale
    pairs = torch.stack([w.scale, zero], -1).transpose(0, 1).contiguous().bfloat16().to(x.device)
    group = k // w.scale.shape[1]
    return {"codes": packed, "scale": pairs}, lambda x, t: torch.ops.aten._weight_int4pack_mm(x, t["codes"], group, t["scale"])


def torch_cpu(op: str) -> Callable[[Tensor, LowBitWeight], Made | str]:
    """make of torch's own weight-only operator for CPUs, which serves where ours is not built; for narrower codes and tables, sums of such products."""

    def make(x: Tensor, w: LowBitWeight) -> Made | str:
        if x.device.type != "cpu":
            return "needs a CPU"
        own = [form for form in ops()[op].cpu if form not in (NATIVE, COPY, REFERENCE)]
        form = next((form for form in own if not form.refuses(w)), None)
        if form is None:
            return "has no operator for it"
        packed = form.pack(w)
        return packed.tensors, lambda x, t: form.run(x, packed._replace(tensors=t))

    return make


def _rounded(x: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    """Inputs rounded by one kernel on a GPU, so that products are compared and not the ways to round."""
    return round_inputs(x, a.kind, a.per, a.scale, None) if x.is_cuda else round_activation(x, a)


def scaled_mm(x: Tensor, w: LowBitWeight) -> Made | str:
    """torch's float8 product, inputs rounded as for ours."""
    if w.activation.kind != "e4m3" or w.scale.shape[1] != 1:
        return "takes E4M3 with one scale a row"
    codes = w.codes.view(torch.float8_e4m3fn).to(x.device)
    scale = w.scale.float().expand(len(codes), 1).T.contiguous().to(x.device)

    def run(x: Tensor, t: dict[str, Tensor]) -> Tensor:
        rounded, scale_x = _rounded(x, w.activation)
        return torch._scaled_mm(rounded, t["codes"].T, scale_x.expand(len(x), 1).contiguous(), t["scale"], out_dtype=torch.bfloat16)

    return {"codes": codes, "scale": scale}, run


def int_mm(x: Tensor, w: LowBitWeight) -> Made | str:
    """torch's int8 product, inputs rounded and sums scaled by torch's operators."""
    if x.device.type == "cuda" and len(x) <= 16:
        return "takes more than 16 rows"
    codes = (w.codes.to(torch.int16) - 128).to(torch.int8).to(x.device)
    scale = w.scale.float().expand(len(codes), 1)[:, 0].contiguous().to(x.device)

    def run(x: Tensor, t: dict[str, Tensor]) -> Tensor:
        rounded, scale_x = _rounded(x, w.activation)
        return (torch._int_mm(rounded, t["codes"].T).float() * scale_x * t["scale"]).to(x.dtype)

    return {"codes": codes, "scale": scale}, run


def gemlite(x: Tensor, w: LowBitWeight) -> Made | str:
    """gemlite's Triton kernels, tuned by itself at the first call."""
    if x.device.type != "cuda":
        return "needs a CUDA GPU"
    if w.codebook is not None or w.bits not in (1, 2, 4, 8):
        return "takes integers of 1, 2, 4 or 8 bits"
    from gemlite.core import DType, GemLiteLinear

    (n, k), groups = w.codes.shape, w.scale.shape[1]
    layer = GemLiteLinear(w.bits, k // groups, k, n, input_dtype=DType.BF16, output_dtype=DType.BF16)
    zero = torch.full_like(w.scale, 2.0 ** (w.bits - 1)) if w.zero is None else w.zero
    layer.pack(w.codes.to(x.device), w.scale.to(x.device, torch.bfloat16), zero.to(x.device, torch.bfloat16), None)
    return _held(layer)


def _held(layer: torch.nn.Module) -> Made:
    """A layer whose tensors are handed in at each call, so that copies of them can be rotated."""
    return dict(layer.named_parameters()) | dict(layer.named_buffers()), lambda x, t: torch.func.functional_call(layer, t, (x,))


def humming(x: Tensor, w: LowBitWeight) -> Made | str:
    """humming's JIT kernels of the same weight, rounded by itself to the same format."""
    if x.device.type != "cuda":
        return "needs a CUDA GPU"
    if w.codebook is not None or not 1 <= w.bits <= 8:
        return "takes integers of 1 to 8 bits"
    from humming.layer import HummingLayer

    (n, k), groups = w.codes.shape, w.scale.shape[1]
    asked = {"dtype": f"uint{w.bits}", "group_size": 0 if groups == 1 else k // groups}
    layer = HummingLayer(n, k, asked, torch_dtype=torch.bfloat16).to(x.device)
    layer.load_from_unquantized(dequantize(w).bfloat16().to(x.device))
    layer.transform()
    return _held(layer)


def torchao(x: Tensor, w: LowBitWeight) -> Made | str:
    """torchao's weight-only layers: 4 bits in groups, or 8 bits with one scale a row, rounded by itself."""
    if x.device.type != "cuda":
        return "needs a CUDA GPU"
    (n, k), groups = w.codes.shape, w.scale.shape[1]
    if w.codebook is not None or (w.bits, groups == 1) not in ((4, False), (8, True)):
        return "takes 4-bit integers in groups or 8-bit ones with a scale a row"
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(k, n, bias=False, dtype=torch.bfloat16, device=x.device).requires_grad_(False)
    layer.weight.copy_(dequantize(w))
    quantize_(layer, Int8WeightOnlyConfig() if w.bits == 8 else Int4WeightOnlyConfig(group_size=k // groups, int4_packing_format="tile_packed_to_4d"))
    return _held(layer)


def bitsandbytes(x: Tensor, w: LowBitWeight) -> Made | str:
    """bitsandbytes' NF4 product of the same weight, rounded by itself."""
    if w.codebook is None or w.scale.shape[1] == 1 or w.codes.shape[1] // w.scale.shape[1] != 64:
        return "timed for NF4 in blocks of 64"
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(dequantize(w).bfloat16().to(x.device), blocksize=64, quant_type="nf4")
    return {"codes": codes}, lambda x, t: matmul_4bit(x, t["codes"].t(), quant_state=state)


PEERS = (
    Peer("tinygemm", "int4_matmul", tinygemm),
    Peer("torch CPU operator", "int4_matmul", torch_cpu("int4_matmul")),
    Peer("torch CPU operator", "int8_matmul", torch_cpu("int8_matmul")),
    Peer("gemlite", "int4_matmul", gemlite),
    Peer("bitsandbytes", "int4_matmul", bitsandbytes),
    Peer("humming", "int4_matmul", humming),
    Peer("torchao", "int4_matmul", torchao),
    Peer("gemlite", "int8_matmul", gemlite),
    Peer("humming", "int8_matmul", humming),
    Peer("torchao", "int8_matmul", torchao),
    Peer("torch _scaled_mm", "w8a8_fp8_matmul", scaled_mm),
    Peer("torch _int_mm", "w8a8_int8_matmul", int_mm),
)
