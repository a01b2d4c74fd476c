"""K-quants: the blocks of blocks that llama.cpp stores in GGUF files, with their weighted search for scales and minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor

SUPER = 256  # weights that share the 16-bit scale of all scales
FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # what llama.cpp stores where 256 does not divide a row


@dataclass(frozen=True)
class KQuant(Method):
    """Small blocks need many scales, and 16 bits each is too much; so the scales are quantized as well, to 4, 6 or 8 bits, under one 16-bit scale
    per 256 weights. Scales and minima come from a search for the least weighted error: large weights count more, or, with calibration, weights
    that meet large inputs (the importance matrix). Rows that 256 does not divide become Q4_0, Q5_0, Q5_1 or Q8_0, as in llama.cpp.
    """

    name: ClassVar[str] = "kquant"
    title: ClassVar[str] = "K-quants (GGUF)"
    short: ClassVar[str] = "GGUF"
    paper: ClassVar[str] = "llama.cpp, k-quants (pull request 1684), 2023"
    needs_inputs: ClassVar[bool] = True

    format: str = choice(
        "q4_k", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q5_0", "q8_0",
        title="Format", help="2.625, 3.4375, 4.5, 5.5, 6.5625, 5.5 and 8.5 bits a weight; 4.5 to 8.5 where 256 does not divide a layer's inputs.",
    )  # fmt: skip
    importance: bool = choice(
        False, title="Importance matrix", help="Weigh errors by the mean squared input of each channel on calibration text; Q8_0 has nothing to weigh."
    )

    def quantize(self, weight: Tensor, inputs: Tensor | None, layer: str = "") -> QuantizedTensor:
        name = self.format if weight.shape[1] % SUPER == 0 else FALLBACK.get(self.format, self.format)
        importance = inputs.float().square().mean(0) if self.importance else None
        if name in MINIMA:
            return _with_minima(weight, importance, MINIMA[name])
        return {"q3_k": _q3_k, "q6_k": _q6_k, "q4_0": _q4_0, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0}[name](weight, importance)

    def reads_inputs(self) -> bool:
        return self.importance

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of 32 do not divide its {shape[1]} inputs" if shape[1] % 32 else ""


class Minima(NamedTuple):
    """A super-block whose blocks of `members` weights have a scale and a minimum, whole numbers up to `top`. wider: by how much the code ranges are
    widened that the search tries without importance. absolute: whether it then sums magnitudes of errors, not their squares. spread: how much of the
    mean square joins a weight's own in the errors' weights.
    """

    bits: int
    members: int
    top: int
    wider: Tensor
    absolute: bool = False
    spread: int = 2


def _widths(first: float, step: float, count: int) -> Tensor:
    return first + step * torch.arange(count)


MINIMA = {
    "q2_k": Minima(2, 16, 15, _widths(-0.5, 0.1, 16), absolute=True, spread=1),
    "q4_k": Minima(4, 32, 63, _widths(-1.0, 0.1, 21)),
    "q5_k": Minima(5, 32, 63, _widths(-0.5, 0.1, 16)),
}
WIDER = _widths(-0.9, 0.05, 37)  # with importance, for every format with minima


def _weighed(groups: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    """Weight of each squared error, of groups' shape [N, groups, G]: importance [K] times the size of the weight; spread: a mean square."""
    return importance.view(1, *groups.shape[1:]) * (spread + groups.square()).sqrt()


def _mean_squares(groups: Tensor) -> Tensor:
    """[N, groups, 1]: the mean square of the super-block that each group [N, groups, G] is in."""
    blocks = SUPER // groups.shape[-1]
    return groups.square().unflatten(1, (-1, blocks)).mean((2, 3), keepdim=True).expand(-1, -1, blocks, 1).flatten(1, 2)


def _half(x: Tensor) -> Tensor:
    return x.half().float()


def _q8_0(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1) / 127
    codes = (groups / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)).round() + 128  # with the scale before it is cut to 16 bits, as there
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), _half(scale), 8, scale_bits=16)


def _q4_0(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    return _blocks_of_32(weight, importance, 4)


def _q5_0(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    return _blocks_of_32(weight, importance, 5)


def _blocks_of_32(weight: Tensor, importance: Tensor | None, bits: int) -> QuantizedTensor:
    """Symmetric codes with a 16-bit scale for each 32."""
    groups, half = weight.unflatten(1, (-1, 32)), 2 ** (bits - 1)
    if importance is None:
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # the largest magnitude, with its sign, becomes code 0
        scale = peak / -half
        codes = (groups / torch.where(scale != 0, scale, 1.0) + (half + 0.5)).floor().clamp(0, 2 * half - 1)
    else:
        errors = _weighed(groups, importance, groups.square().mean((1, 2), keepdim=True))
        scale, codes = _search_scale(groups, errors, half)
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), _half(scale.squeeze(-1)), bits, scale_bits=16)


def _q5_1(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """5-bit codes with a 16-bit scale and a 16-bit minimum for each 32."""
    groups = weight.unflatten(1, (-1, 32))
    if importance is None:
        low = groups.amin(-1)
        scale = (groups.amax(-1) - low) / 31
        codes = ((groups - low.unsqueeze(-1)) / torch.where(scale > 0, scale, 1.0).unsqueeze(-1) + 0.5).floor()
    else:
        errors = _weighed(groups, importance, groups.square().mean((1, 2), keepdim=True))
        scale, low, codes = _search_scale_and_minimum(groups, errors, 31, WIDER)
    return _shifted(codes, _half(scale), -_half(low), 5, scale_bits=16, zero_bits=16)


def _shifted(codes: Tensor, scale: Tensor, minimum: Tensor, bits: int, **stored: int) -> QuantizedTensor:
    """w = scale * code - minimum, of codes [N, groups, G], scale and minimum [N, groups]. A block without a scale is the constant -minimum: code 0, zero 1.
    stored: further fields of the QuantizedTensor.
    """
    step = torch.where(scale > 0, scale, torch.where(minimum != 0, minimum, 1.0))
    codes = (codes * (scale > 0).unsqueeze(-1)).to(torch.uint8).flatten(1)
    return QuantizedTensor(codes, step, bits, minimum / step, **stored)


def _q6_k(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """16 blocks of 16: symmetric 6-bit codes, 8-bit block scales, one 16-bit scale."""
    groups = weight.unflatten(1, (-1, 16))
    errors = groups.square() if importance is None else importance.view(1, *groups.shape[1:]).expand_as(groups)
    best, _ = _search_scale(groups, errors, 32)
    return _under_one_scale(groups, *_divided(best, 128), 6, 8)


def _q3_k(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """16 blocks of 16: symmetric 3-bit codes, 6-bit block scales, one 16-bit scale."""
    groups = weight.unflatten(1, (-1, 16))
    if importance is None:
        errors, peak = groups.square(), groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        codes = (groups * (-4 / torch.where(peak != 0, peak, 1.0))).round().clamp(-4, 3)
        best, _ = _settled(groups, errors, codes, -4, 3)
        return _under_one_scale(groups, *_divided(best, 32), 3, 6)
    errors = _weighed(groups, importance, 2 * _mean_squares(groups))
    best, _ = _search_scale(groups, errors, 4)
    whole, small = _search_scale(best.view(len(best), -1, SUPER // 16), errors.sum(-1).unflatten(1, (-1, SUPER // 16)), 32)
    return _under_one_scale(groups, whole, small - 32, 3, 6)


def _divided(scales: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Block scales [N, groups, 1] as (one scale for each 16 of them [N, K/256, 1], whole numbers from -half to half - 1 [N, K/256, 16])."""
    scales = scales.squeeze(-1).unflatten(1, (-1, SUPER // 16))
    extreme = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    inverse = -half / torch.where(extreme != 0, extreme, 1.0)
    return torch.where(extreme != 0, 1 / inverse, 0.0), (scales * inverse).round().clamp(-half, half - 1)


def _under_one_scale(groups: Tensor, whole: Tensor, small: Tensor, bits: int, scale_bits: int) -> QuantizedTensor:
    """groups [N, groups, 16] rounded on the grids that `whole` in 16 bits times the whole numbers `small` give them."""
    scale, half = (_half(whole) * small).flatten(1), 2 ** (bits - 1)
    codes = (groups / torch.where(scale != 0, scale, 1.0).unsqueeze(-1)).round().clamp(-half, half - 1) + half
    codes = torch.where(scale.unsqueeze(-1) != 0, codes, float(half))
    return QuantizedTensor(codes.to(torch.uint8).flatten(1), scale, bits, scale_bits=scale_bits, extra_bits=16 * whole.numel())


def _search_scale(groups: Tensor, errors: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(scale [N, groups, 1], codes of groups' shape, `half` for zero) of least sum errors * (scale * (code - half) - w)^2: for 19 widths of the code
    range, round, then solve for the scale.
    """
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    safe = torch.where(peak != 0, peak, 1.0)
    best, most, kept = torch.zeros_like(peak), torch.full_like(peak, -torch.inf), torch.zeros_like(groups)
    for wide in half + 0.1 * torch.tensor(sorted(range(-9, 10), key=bool)):  # the plain width first: another has to be better
        codes = (groups * (-wide / safe)).round().clamp(-half, half - 1)
        product, square = (errors * groups * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        scale = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0)
        gain = scale * product  # how much of the weighted square the codes explain
        better = gain > most
        best, most, kept = torch.where(better, scale, best), torch.where(better, gain, most), torch.where(better, codes, kept)
    return best, kept + half


def _settled(x: Tensor, errors: Tensor, codes: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """(scale [..., 1], codes) of less sum errors * (scale * code - x)^2, all [..., members]: one code at a time goes to where the rest would have it,
    for five rounds. Only where codes and x agree in sign, as in llama.cpp: not in a block of Q3_K whose largest magnitude is positive.
    """
    x, w, codes = (part.movedim(-1, 0).contiguous() for part in (x, errors, codes))
    product, square = (w * x * codes).sum(0), (w * codes.square()).sum(0)
    for i in list(range(len(x))) * 5:
        rest, squares = product - w[i] * x[i] * codes[i], square - w[i] * codes[i].square()
        able = (rest > 0) & (squares > 0)
        new = (x[i] * squares / torch.where(able, rest, 1.0)).round().clamp(low, high)
        rest, squares = rest + w[i] * x[i] * new, squares + w[i] * new.square()
        better = able & (new != codes[i]) & (rest.square() * square > product.square() * squares)
        codes[i] = torch.where(better, new, codes[i])
        product, square = torch.where(better, rest, product), torch.where(better, squares, square)
    scale = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0)
    return scale.unsqueeze(-1), codes.movedim(0, -1)


def _with_minima(weight: Tensor, importance: Tensor | None, made: Minima) -> QuantizedTensor:
    """Codes [N, K] with block scales and minima as whole numbers, and a 16-bit scale for each of the two in every super-block."""
    groups, most = weight.unflatten(1, (-1, made.members)), 2**made.bits - 1
    if importance is None:
        errors = groups.abs() if made.absolute else groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
        scale, low, _ = _search_scale_and_minimum(groups, errors, most, made.wider, made.absolute)
        wholes = [_round_scales(part, made) for part in (scale, -low)]
    else:
        errors = _weighed(groups, importance, made.spread * _mean_squares(groups))
        scale, low, _ = _search_scale_and_minimum(groups, errors, most, WIDER)
        wholes = [_search_scales(part, errors.sum(-1), made) for part in (scale, -low)]
    scale, minimum = wholes  # [N, groups]
    codes = ((groups + minimum.unsqueeze(-1)) / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)).round().clamp(0, most)
    small = made.top.bit_length()
    return _shifted(codes, scale, minimum, made.bits, scale_bits=small, zero_bits=small, extra_bits=32 * weight.numel() // SUPER)


def _round_scales(values: Tensor, made: Minima) -> Tensor:
    """Non-negative `values` [N, groups] as whole numbers up to the top times one 16-bit scale for each super-block."""
    part = values.unflatten(1, (-1, SUPER // made.members))
    whole = part.amax(-1, keepdim=True) / made.top
    return (_half(whole) * (part / torch.where(whole > 0, whole, 1.0)).round().clamp(0, made.top)).flatten(1)


def _search_scales(values: Tensor, errors: Tensor, made: Minima) -> Tensor:
    """As `_round_scales`, of least sum errors * (scale * whole number - value)^2: among nine scales the best, then one whole number at a time to
    where the rest would have it.
    """
    x, w = (part.unflatten(1, (-1, SUPER // made.members)) for part in (values, errors))  # [N, K/256, blocks]
    peak = x.amax(-1, keepdim=True)
    safe = torch.where(peak > 0, peak, 1.0)
    best, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
    for wide in made.top + 0.1 * torch.tensor(sorted(range(-4, 5), key=bool)):
        inverse = wide / safe
        loss = (w * (x - (inverse * x).round().clamp(max=made.top) / inverse).square()).sum(-1, keepdim=True)
        best, least = torch.where(loss < least, inverse, best), torch.minimum(loss, least)
    whole, small = _settled(x, w, (best * x).round().clamp(0, made.top), 0, made.top)
    return (_half(whole) * small).flatten(1)


def _search_scale_and_minimum(groups: Tensor, errors: Tensor, most: int, wider: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, minimum <= 0, both [N, groups], codes up to `most` of groups' shape) of least sum errors * (scale * code + minimum - w)^2, or of
    magnitudes instead of squares: for each code range of most + `wider` above the least weight, round, then solve the weighted least squares for both.
    """
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    scale = (high - low) / most
    codes = ((groups - low) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, most)
    size = torch.abs if absolute else torch.square
    least = (errors * size(scale * codes + low - groups)).sum(-1, keepdim=True)
    total, linear = errors.sum(-1, keepdim=True), (errors * groups).sum(-1, keepdim=True)
    kept = codes
    for wide in most + wider:  # as tensors: torch divides a number by multiplying, and at half steps the largest weight is on a tie
        width = torch.where(high > low, high - low, 1.0)
        codes = ((groups - low) * (wide / width)).round().clamp(0, most)
        first, second = (errors * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        cross = (errors * groups * codes).sum(-1, keepdim=True)
        determinant = total * second - first.square()
        solvable = determinant > 0
        divisor = torch.where(solvable, determinant, 1.0)
        slope, shift = (total * cross - linear * first) / divisor, (second * linear - first * cross) / divisor
        positive = shift > 0  # no minimum above zero can be stored
        slope = torch.where(positive, torch.where(second > 0, cross / second.clamp(min=1e-38), 0.0), slope)
        shift = shift.clamp(max=0)
        loss = (errors * size(slope * codes + shift - groups)).sum(-1, keepdim=True)
        better = solvable & (loss < least) & (high > low)
        scale, low, least = torch.where(better, slope, scale), torch.where(better, shift, low), torch.where(better, loss, least)
        kept = torch.where(better, codes, kept)
    return scale.clamp(min=0).squeeze(-1), low.squeeze(-1), kept
