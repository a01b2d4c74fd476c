"""QuantizedTensor: what a stored weight means (`dequantize`) and what it costs (`stored_bits`), the only accounting. What codes alone mean is defined by
`kernels.op.dequantize`; here is what stands around them: transforms, columns kept whole, scales that are themselves stored in few bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from explorer.rotation import Rotation
from kernels.op import Activation, LowBitWeight, Nested, per_group
from kernels.op import dequantize as _dequantize


def dynamic_code() -> Tensor:
    """The signed 8-bit dynamic code, [256] float32 ascending in [-1, 1] (Dettmers 2015, arXiv 1511.04561, section 2).

    The leading zeros of the seven bits under the sign give a power of ten, the rest divide that decade evenly; 0 and 1 are added.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        centres = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)).tolist()
        values += centres + [-c for c in centres]
    return torch.tensor(sorted(values), dtype=torch.float32)


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Index of the nearest entry of an ascending code, uint8, same shape as values; a value on a midpoint goes to the lower entry."""
    return torch.bucketize(values, (code[1:] + code[:-1]) / 2).to(torch.uint8)


RUN = 256  # blocks that share an outer scale


@dataclass(frozen=True)
class NestedScale:
    """Double-quantized block scales (QLoRA, section 3): scale = codebook[code] * outer + offset.

    codes [B] uint8, one a block; outer [ceil(B/256)] float32, one a run of 256 blocks; codebook [256] float32; offset a float32 scalar.
    """

    codes: Tensor
    outer: Tensor
    codebook: Tensor
    offset: Tensor

    @classmethod
    def of(cls, absmax: Tensor) -> NestedScale:
        """Block scales in 8 bits, centred, in runs of 256 blocks."""
        flat = absmax.flatten()
        offset = flat.mean()
        runs = torch.nn.functional.pad(flat - offset, (0, -flat.numel() % RUN)).reshape(-1, RUN)
        outer = runs.abs().amax(-1)
        book = dynamic_code().to(flat.device)
        codes = nearest(runs / torch.where(outer > 0, outer, 1.0).unsqueeze(-1), book).flatten()[: flat.numel()]
        return cls(codes, outer, book, offset)

    def scales(self) -> Tensor:
        """The block scales, [B] float32."""
        run = torch.arange(self.codes.numel(), device=self.codes.device) // RUN
        return self.codebook[self.codes.long()] * self.outer[run] + self.offset

    def stored_bits(self) -> int:
        return 8 * self.codes.numel() + 32 * self.outer.numel() + 32  # the codebook is a constant of the format


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight of shape [N, K], and what is done to the inputs it meets.

    codes: [N, K] uint8, values in [0, 2**bits). scale: [R, K/G], bfloat16 or float32, R = N, 1, or N / 128. zero: of the same shape as
    scale, the code that means 0, or None when that is 2**(bits-1). codebook: [2**bits] float32, then w = codebook[code] * scale.
    nested: how the scales themselves are stored when they are quantized too (`scale` then holds their dequantized values). scale_unit: float32
    scalar, then every scale is an E4M3 number times it.
    code_bits, scale_bits, zero_bits: stored width of one code, scale and zero; None for `bits`, the scale's own dtype, and `bits`. Fewer
    code_bits than bits: eight codes of a lattice point are stored together. zero_bits 0: the zero is a constant of the format.
    extra_bits: further bits stored with the tensor, such as a scale of all scales.
    channel_scale: [K] float32, inputs are divided by it and the weights were multiplied; channel_bits: stored width of one, 0 where the operator
    before the layer takes it. rotation: of the inputs, and of the weights alike.
    activation: how the inputs are rounded after that.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero: Tensor | None = None
    codebook: Tensor | None = None
    nested: NestedScale | None = None
    scale_unit: Tensor | None = None
    code_bits: int | None = None
    scale_bits: int | None = None
    zero_bits: int | None = None
    extra_bits: int = 0
    channel_scale: Tensor | None = None
    channel_bits: int = 16
    rotation: Rotation | None = None
    activation: Activation | None = None

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same tensor on a device; itself where it is there already."""
        return self if self.codes.device == device and self.scale.device == device else _on(self, device)

    def weight(self) -> LowBitWeight:
        """The view of this tensor that kernels take: it multiplies inputs that were divided, rotated and rounded."""
        zero = None if self.zero is None else self.zero.float()
        nested = None if self.nested is None else Nested(*(getattr(self.nested, name) for name in ("codes", "outer", "codebook", "offset")), RUN)
        return LowBitWeight(self.codes, self.scale, zero, self.bits, self.codebook, self.activation, self.scale_unit, nested)

    def transform(self, x: Tensor) -> Tensor:
        """Inputs [..., K] as the packed weight wants them, not yet rounded."""
        x = x if self.channel_scale is None else x / self.channel_scale.to(x.dtype)
        return x if self.rotation is None else self.rotation.apply(x)

    def dequantize(self) -> Tensor:
        """[N, K] float32: the weight that acts on the layer's own inputs, with every transform undone."""
        weight = _dequantize(self.weight())
        weight = weight if self.rotation is None else self.rotation.invert(weight)
        return weight if self.channel_scale is None else weight / self.channel_scale

    def stored_bits(self) -> int:
        """Bits that a checkpoint needs for this tensor: codes at their width, every scale, zero, channel scale and sign."""
        total = (self.code_bits or self.bits) * self.codes.numel() + self.extra_bits
        total += self.nested.stored_bits() if self.nested else self.scale.numel() * (self.scale_bits or self.scale.element_size() * 8)
        total += 0 if self.zero is None else self.zero.numel() * (self.bits if self.zero_bits is None else self.zero_bits)
        total += 0 if self.channel_scale is None else self.channel_bits * self.channel_scale.numel()
        return total + (0 if self.rotation is None else self.rotation.signs.numel())

    def grid(self, row: int = 0, group: int = 0) -> Tensor:
        """The values that the codes of one group stand for, ascending, [2**bits] float32. A symmetric grid whose scale is absmax / (2**(bits-1) - 1)
        has no use for its lowest code: where no weight of the tensor takes that, it is left out, [2**bits - 1].
        """
        scale = self.scale.float()[min(row, self.scale.shape[0] - 1), min(group, self.scale.shape[1] - 1)]
        if self.codebook is not None:
            return (self.codebook * scale).sort().values
        zero = self.zero.float()[min(row, self.zero.shape[0] - 1), min(group, self.zero.shape[1] - 1)] if self.zero is not None else 2 ** (self.bits - 1)
        lowest = int(self.zero is None and bool((self.codes > 0).all()))
        return (torch.arange(lowest, 2**self.bits, device=scale.device) - zero) * scale


def _on(parts: Any, device: torch.device) -> Any:
    """A dataclass with its tensors, and those of dataclasses in it, on a device."""
    values = {field.name: getattr(parts, field.name) for field in fields(parts)}
    moved = {
        name: value.to(device) if isinstance(value, Tensor) else _on(value, device)
        for name, value in values.items()
        if isinstance(value, Tensor) or is_dataclass(value)
    }
    return replace(parts, **moved)


def concatenate(parts: Sequence[QuantizedTensor]) -> QuantizedTensor | None:
    """The weights [N1, K], [N2, K], ... one below the other as one tensor that means the same; None where formats, groups or input transforms differ.

    For running, not for storing: a scale of a whole tensor becomes one a row, and `stored_bits` counts the result's own. The unit of scales stays where
    all parts share it.
    """
    first = parts[0]
    for part in parts:
        same = part.bits == first.bits and part.activation == first.activation and (part.zero is None) == (first.zero is None)
        same &= part.scale.shape[1] == first.scale.shape[1] and part.scale.dtype == first.scale.dtype and part.codes.shape[1] == first.codes.shape[1]
        pairs = [(part.codebook, first.codebook), (part.channel_scale, first.channel_scale), (_signs(part), _signs(first))]
        if not same or not all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs):
            return None
    shared = {part.codes.shape[0] // part.scale.shape[0] for part in parts}  # rows that share a scale
    whole = len(shared) == 1 and first.scale.shape[0] > 1 and all(part.codes.shape[0] % part.scale.shape[0] == 0 for part in parts)

    def stack(name: str) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        return torch.cat(rows if whole else [_a_row(r, part.codes.shape[0]) for r, part in zip(rows, parts, strict=True)])

    zero = None if first.zero is None else stack("zero")
    codes = torch.cat([part.codes for part in parts])
    units = [part.scale_unit for part in parts]
    unit = units[0] if all(one is not None and torch.equal(one, units[0]) for one in units) else None
    return QuantizedTensor(
        codes, stack("scale"), first.bits, zero, first.codebook, scale_unit=unit, channel_scale=first.channel_scale, rotation=first.rotation,
        activation=first.activation,
    )  # fmt: skip


def _signs(part: QuantizedTensor) -> Tensor | None:
    return None if part.rotation is None else part.rotation.signs


def _a_row(values: Tensor, n: int) -> Tensor:
    """Scales or zeros [R, groups] as one a row, [N, groups]."""
    return values.repeat_interleave(n // values.shape[0], dim=0)


def group_view(weight: Tensor, granularity: str, group_size: int) -> Tensor:
    """[N, K] seen as [rows, groups, members], the members of one group share a scale; a view where the layout allows it."""
    n, k = weight.shape
    if granularity == "tensor":
        return weight.reshape(1, 1, n * k)
    if granularity == "channel":
        return weight.unsqueeze(1)
    return weight.reshape(n, k // group_size, group_size)


def quantize_codebook(weight: Tensor, scale: Tensor, codebook: Tensor, bits: int, **stored: Any) -> QuantizedTensor:
    """Rounds weight [N, K] float32 to the nearest entries of an ascending codebook [2**bits] times scale [R, K/G]; ties go to the lower entry.

    stored: further fields of the QuantizedTensor.
    """
    n, k = weight.shape
    each = per_group(torch.where(scale > 0, scale, 1.0), n, k)
    return QuantizedTensor(nearest(weight / each, codebook), scale, bits, codebook=codebook, **stored)


def affine_parameters(groups: Tensor, bits: int, symmetric: bool, full: bool = False) -> tuple[Tensor, Tensor | None]:
    """Scale (bfloat16) and zero (float32 integers, or None when symmetric) of min-max quantization; both [rows, groups].

    Symmetric: s = absmax / (2**(bits-1) - 1), or for the full range absmax / ((2**bits - 1) / 2), which has a use for the lowest code and moves the
    largest weight of the upper side by half a step. Asymmetric: s = (max - min) / (2**bits - 1), zero = round(-min / s), with 0 in the range.
    """
    if symmetric:
        scale = groups.abs().amax(-1) / ((2**bits - 1) / 2 if full else 2 ** (bits - 1) - 1)
        return torch.where(scale > 0, scale, 1.0).bfloat16(), None
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0).bfloat16()
    return scale, (-low / scale.float()).round().clamp(0, 2**bits - 1)


def clip_range(
    groups: Tensor, bits: int, symmetric: bool, full: bool = False, steps: int = 80, grid: int = 100, power: float = 2.4
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero as `affine_parameters` gives them, for the range shrunk to p = 1 - i/grid (i < steps) that has the least
    sum |w' - w|^power in each group (the quantizer of GPTQ's authors).
    """
    best_scale, best_zero = affine_parameters(groups, bits, symmetric, full)
    least = torch.full(groups.shape[:-1], torch.inf, device=groups.device)
    for i in range(steps):
        scale, zero = affine_parameters(groups * (1 - i / grid), bits, symmetric, full)
        codes = affine_codes(groups, scale, zero, bits).float() - (2 ** (bits - 1) if zero is None else zero.unsqueeze(-1))
        loss = (codes * scale.float().unsqueeze(-1) - groups).abs().pow(power).sum(-1)
        better = loss < least
        least, best_scale = torch.where(better, loss, least), torch.where(better, scale, best_scale)
        best_zero = None if best_zero is None else torch.where(better, zero, best_zero)
    return best_scale, best_zero


def affine_codes(groups: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """The nearest codes, uint8, of [rows, groups, members] under [rows, groups] scale and zero."""
    offset = 2 ** (bits - 1) if zero is None else zero.unsqueeze(-1)
    return ((groups / scale.float().unsqueeze(-1)).round() + offset).clamp(0, 2**bits - 1).to(torch.uint8)


def affine_values(groups: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """What the nearest codes of [rows, groups, members] stand for, same shape: a search that rounds often need not pass by codes."""
    step = scale.float().unsqueeze(-1)
    offset = 2 ** (bits - 1) if zero is None else zero.unsqueeze(-1)
    return (groups / step).round_().add_(offset).clamp_(0, 2**bits - 1).sub_(offset).mul_(step)


def quantize_affine(weight: Tensor, bits: int, granularity: str, group_size: int, symmetric: bool, clip: bool = False, full: bool = False) -> QuantizedTensor:
    """Rounds to nearest on a uniform grid from min to max, or over the range that `clip_range` finds. weight [N, K] float32; full: see
    `affine_parameters`.
    """
    groups = group_view(weight, granularity, group_size)
    scale, zero = (clip_range if clip else affine_parameters)(groups, bits, symmetric, full)
    codes = affine_codes(groups, scale, zero, bits).reshape(weight.shape)
    return QuantizedTensor(codes, scale, bits, zero)
