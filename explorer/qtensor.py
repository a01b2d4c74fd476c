"""QuantizedTensor: what codes mean (`dequantize`) and what they cost (`stored_bits`). The only place where either is defined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.op import LowBitWeight
from kernels.op import dequantize as _dequantize


@dataclass(frozen=True)
class NestedScale:
    """Double-quantized block scales (QLoRA, section 3): scale = codebook[code] * outer + offset.

    codes [B] uint8, one a block; outer [ceil(B/256)] float32, one a run of 256 blocks; codebook [256] float32; offset a float32 scalar.
    """

    codes: Tensor
    outer: Tensor
    codebook: Tensor
    offset: Tensor

    def scales(self) -> Tensor:
        """The block scales, [B] float32."""
        run = torch.arange(self.codes.numel(), device=self.codes.device) // 256
        return self.codebook[self.codes.long()] * self.outer[run] + self.offset

    def stored_bits(self) -> int:
        return 8 * self.codes.numel() + 32 * self.outer.numel() + 32  # the codebook is a constant of the format


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight of shape [N, K].

    codes: [N, K] uint8, values in [0, 2**bits). scale: [N, K/G], [N, 1] or [1, 1], bfloat16 or float32. zero: integers of the same shape
    as scale, the code that means 0, or None when that is 2**(bits-1). codebook: [2**bits] float32, then w = codebook[code] * scale.
    nested: how the scales themselves are stored when they are quantized too (`scale` then holds their dequantized values).
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero: Tensor | None = None
    codebook: Tensor | None = None
    nested: NestedScale | None = None

    def weight(self) -> LowBitWeight:
        """The view of this tensor that kernels take."""
        zero = None if self.zero is None else self.zero.float()
        return LowBitWeight(self.codes, self.scale, zero, self.bits, self.codebook)

    def dequantize(self) -> Tensor:
        """[N, K] float32."""
        return _dequantize(self.weight())

    def stored_bits(self) -> int:
        """Bits that a checkpoint needs for this tensor: codes at their width, every scale and every zero (bits wide)."""
        total = self.bits * self.codes.numel()
        total += self.nested.stored_bits() if self.nested else self.scale.numel() * self.scale.element_size() * 8
        return total + (self.bits * self.zero.numel() if self.zero is not None else 0)

    def grid(self, row: int = 0, group: int = 0) -> Tensor:
        """The values that the codes of one group can represent, ascending, [2**bits] float32."""
        scale = self.scale.float()[min(row, self.scale.shape[0] - 1), min(group, self.scale.shape[1] - 1)]
        if self.codebook is not None:
            return (self.codebook * scale).sort().values
        zero = self.zero.float()[min(row, self.zero.shape[0] - 1), min(group, self.zero.shape[1] - 1)] if self.zero is not None else 2 ** (self.bits - 1)
        return (torch.arange(2**self.bits, device=scale.device) - zero) * scale


def group_view(weight: Tensor, granularity: str, group_size: int) -> Tensor:
    """[N, K] seen as [rows, groups, members], the members of one group share a scale; a view where the layout allows it."""
    n, k = weight.shape
    if granularity == "tensor":
        return weight.reshape(1, 1, n * k)
    if granularity == "channel":
        return weight.unsqueeze(1)
    return weight.reshape(n, k // group_size, group_size)


def affine_parameters(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale (bfloat16) and zero (float32 integers, or None when symmetric) of min-max quantization; both [rows, groups].

    Symmetric: s = absmax / (2**(bits-1) - 1). Asymmetric: s = (max - min) / (2**bits - 1), zero = round(-min / s), with 0 in the range.
    """
    if symmetric:
        scale = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
        return torch.where(scale > 0, scale, 1.0).bfloat16(), None
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0).bfloat16()
    return scale, (-low / scale.float()).round().clamp(0, 2**bits - 1)


def affine_codes(groups: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """The nearest codes, uint8, of [rows, groups, members] under [rows, groups] scale and zero."""
    offset = 2 ** (bits - 1) if zero is None else zero.unsqueeze(-1)
    return ((groups / scale.float().unsqueeze(-1)).round() + offset).clamp(0, 2**bits - 1).to(torch.uint8)


def quantize_affine(weight: Tensor, bits: int, granularity: str, group_size: int, symmetric: bool) -> QuantizedTensor:
    """Rounds to nearest on a uniform grid. weight [N, K] float32."""
    groups = group_view(weight, granularity, group_size)
    scale, zero = affine_parameters(groups, bits, symmetric)
    codes = affine_codes(groups, scale, zero, bits).reshape(weight.shape)
    return QuantizedTensor(codes, scale, bits, zero)
