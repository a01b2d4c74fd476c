"""CPU forms for formats that torch has no operator for, built from those it has: 4-bit codes summed, and a 16-bit copy."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kernels import read_out
from kernels.formats import group_of, integers
from kernels.linear16 import linear
from kernels.native_round import round_here
from kernels.op import Form, LowBitWeight, Packed, dequantize, per_group

CPU_GROUPS = (256, 128, 64, 32)  # what torch's 4-bit CPU operator takes


EXACT = 1e-3  # how far, in Frobenius norm, a table may be from the sums of its codes: less than bfloat16 rounds


@cache
def digits(table: tuple[float, ...]) -> tuple[tuple[Tensor, float], ...]:
    """A table as a sum of two or three (integers in [-8, 7], step): the largest step is searched for, each next one divides what is left."""
    values, code = torch.tensor(table, dtype=torch.float64), torch.arange(-8.0, 8.0, dtype=torch.float64)
    best, least = (values, values, 1.0), torch.inf
    sums = (code[:, None] + code / 16).flatten().sort()
    for limit in [3.0, 3.75, 6.0, 7.0, *torch.linspace(6, 7.4, 71).tolist()]:  # the largest value in steps
        step = values.abs().max().item() / limit
        index = torch.bucketize(values / step, (sums.values[1:] + sums.values[:-1]) / 2)
        error = (sums.values[index] * step - values).norm().item()
        if error < least - 1e-9:
            best, least = (code[sums.indices[index] // 16], code[sums.indices[index] % 16], step), error
    first, second, step = best
    parts = [(first.int(), step), (second.int(), step / 16)]
    left = values - (first + second / 16) * step
    if least > EXACT * values.norm():
        third = left.abs().max().item() / 7
        parts.append(((left / third).round().int(), third))
    return tuple(parts)


def _nibble_group(w: LowBitWeight) -> int:
    """The group of weights that the codes are laid out in, 0 when none fits."""
    group, sizes = group_of(w), (*CPU_GROUPS, 16)
    return next((g for g in sizes if w.codes.shape[1] % g == 0 and group in (0, g)), 0)


def _nibbles_refuse(w: LowBitWeight) -> str:
    if w.codes.shape[0] % 16:
        return f"{w.codes.shape[0]} outputs are not a multiple of 16"
    group = _nibble_group(w)
    if not group:
        return f"groups of {group_of(w)} are not 16, 32, 64, 128 or 256 weights"
    if w.codebook is not None and w.bits > 4 and len(digits(tuple(w.codebook.tolist()))) > 2:
        return "its table is not the sum of two 4-bit codes"
    if w.codebook is not None and group == 16 and len(digits(tuple(w.codebook.tolist()))) > 2:
        return "groups of 16 take two codes, its table needs three"
    return "8-bit codes with zeros need nine bits" if w.zero is not None and w.bits > 7 else ""


def _nibbles_pack(w: LowBitWeight) -> Packed:
    """w = scale * (step_1 a + step_2 b + ... + shift). Codes [N, K] of every step side by side in torch's blocked layout, with step * scale and
    shift as one [groups, N, 2] bfloat16; the inputs are repeated. Groups of 16 are too short for the operator: there 16 a's and 16 b's
    share one scale, and the second half of the inputs is divided by 16 instead.
    """
    w = integers(w)
    n, k = w.codes.shape
    group, scale, shift = _nibble_group(w), w.scale.float(), torch.zeros(1, 1)
    if w.codebook is not None:
        parts = [(table.to(w.codes.device)[w.codes.long()], step) for table, step in digits(tuple(w.codebook.tolist()))]
    else:
        middle = 2 ** (w.bits - 1) + (8 if w.bits == 8 else 0)  # 16 a + b lies in [-136, 119]
        values = w.codes.to(torch.int32) - middle
        second = (values + 8) % 16 - 8
        parts = [((values - second) // 16, 16.0), (second, 1.0)]
        shift = middle - (2.0 ** (w.bits - 1) if w.zero is None else w.zero.float())
    if group == 16:
        codes = torch.stack([codes for codes, _step in parts], 1).view(n, 2, -1, 16).transpose(1, 2).reshape(n, 2 * k)
        pairs = [_pairs(parts[0][1] * scale, shift * scale * (16 / 17), n, k // 16)]
    else:
        codes = torch.cat([codes for codes, _step in parts], 1)
        pairs = [_pairs(step * scale, shift * scale * (i == 0), n, k // group) for i, (_codes, step) in enumerate(parts)]
    blocked = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).to(torch.int32), 1)
    return Packed({"codes": blocked, "scale": torch.cat(pairs)}, (group, len(parts), read_out.crossing(n, k, len(parts))))


def _pairs(scale: Tensor, shift: Tensor, n: int, groups: int) -> Tensor:
    """Scale and shift [R, .] as torch's operator takes them, [groups, N, 2] bfloat16."""
    pairs = torch.stack(torch.broadcast_tensors(scale, shift), -1)
    pairs = pairs.repeat_interleave(n // pairs.shape[0], 0).repeat_interleave(groups // pairs.shape[1], 1)
    return pairs.transpose(0, 1).contiguous().bfloat16()


def _nibbles_run(x: Tensor, packed: Packed) -> Tensor:
    t, (group, parts, first) = packed.tensors, packed.meta
    return read_out.multiply(x.bfloat16(), t["codes"], group, t["scale"], parts, first).to(x.dtype)


NIBBLES = Form(
    "summed 4-bit codes", _nibbles_refuse, _nibbles_pack, _nibbles_run,
    "bf16 activations; a weight is the sum of two codes on torch's 4-bit operator, 8 bits resident, or of three, 12 bits, for tables such as NF4's",
    many="summed 4-bit codes read out to bfloat16", crossing=lambda packed: read_out.begins(packed.meta[2]),
)  # fmt: skip


def _copy_run(x: Tensor, packed: Packed) -> Tensor:
    narrow, (activation,) = x.bfloat16(), packed.meta
    if activation is None:
        return linear(narrow, packed.tensors["weight"]).to(x.dtype)
    codes, scale = round_here(x, activation)
    codes = codes.to(torch.bfloat16)
    if activation.per == "block":
        return linear((codes.float() * per_group(scale, *codes.shape)).bfloat16(), packed.tensors["weight"]).to(x.dtype)
    return (linear(codes, packed.tensors["weight"]).float() * scale).to(x.dtype)


def _copy_refuses(w: LowBitWeight) -> str:
    return "integer products are exact, a 16-bit copy is not" if w.activation is not None and w.activation.kind == "int8" else ""


COPY = Form(
    "16-bit copy", _copy_refuses, lambda w: Packed({"weight": dequantize(w).bfloat16()}, (w.activation,)), _copy_run,
    "the weight expanded to bfloat16 once: no operator of torch's reads the format, so no memory is saved", torch.bfloat16,
)  # fmt: skip
