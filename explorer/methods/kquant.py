"""K-quants: the blocks of blocks that llama.cpp stores in GGUF files, with their weighted search for scales and minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.qtensor import QuantizedTensor

SUPER = 256  # weights that share the 16-bit scale of all scales
FALLBACK = {"q4_k": "q5_0", "q6_k": "q8_0"}  # what llama.cpp stores where 256 does not divide a row


@dataclass(frozen=True)
class KQuant(Method):
    """Small blocks need many scales, and 16 bits each is too much; so the scales are quantized as well, to 6 or 8 bits, under one 16-bit scale
    per 256 weights. Scales and minima come from a search for the least weighted squared error: large weights count more, or, with
    calibration, weights that meet large inputs (the importance matrix). Rows that 256 does not divide become Q5_0 or Q8_0, as in llama.cpp.
    """

    name: ClassVar[str] = "kquant"
    title: ClassVar[str] = "K-quants (GGUF)"
    short: ClassVar[str] = "GGUF"
    paper: ClassVar[str] = "llama.cpp, k-quants (pull request 1684), 2023"
    needs_inputs: ClassVar[bool] = True

    format: str = choice("q4_k", "q4_k", "q6_k", "q5_0", "q8_0", title="Format", help="4.5, 6.56, 5.5 and 8.5 bits a weight.")
    importance: bool = choice(
        False, title="Importance matrix", help="Weigh errors by the mean squared input of each channel on calibration text; Q8_0 has nothing to weigh."
    )

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        name = self.format if weight.shape[1] % SUPER == 0 else FALLBACK.get(self.format, self.format)
        importance = inputs.mean_square if self.importance else None
        return {"q4_k": _q4_k, "q6_k": _q6_k, "q5_0": _q5_0, "q8_0": _q8_0}[name](weight, importance)

    def reads_inputs(self) -> bool:
        return self.importance

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of 32 do not divide its {shape[1]} inputs" if shape[1] % 32 else ""


def _weighed(groups: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    """Weight of each squared error, of groups' shape [N, groups, G]: importance [K] times the size of the weight; spread: a mean square."""
    return importance.view(1, *groups.shape[1:]) * (spread + groups.square()).sqrt()


def _half(x: Tensor) -> Tensor:
    return x.half().float()


def _q8_0(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1) / 127
    codes = (groups / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)).round() + 128  # with the scale before it is cut to 16 bits, as there
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), _half(scale), 8, scale_bits=16)


def _q5_0(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    groups = weight.unflatten(1, (-1, 32))
    if importance is None:
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # the largest magnitude, with its sign, becomes code 0
        scale = peak / -16
        codes = (groups / torch.where(scale != 0, scale, 1.0) + 16.5).floor().clamp(0, 31)
    else:
        errors = _weighed(groups, importance, groups.square().mean((1, 2), keepdim=True))
        scale, codes = _search_scale(groups, errors, 16)
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), _half(scale.squeeze(-1)), 5, scale_bits=16)


def _q6_k(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """16 blocks of 16: symmetric 6-bit codes, 8-bit block scales, one 16-bit scale."""
    groups = weight.unflatten(1, (-1, 16))
    errors = groups.square() if importance is None else importance.view(1, *groups.shape[1:]).expand_as(groups)
    best, _ = _search_scale(groups, errors, 32)
    scales = best.squeeze(-1).unflatten(1, (-1, SUPER // 16))  # [N, K/256, 16]
    extreme = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))
    whole = _half(extreme / -128)
    small = (scales / torch.where(whole != 0, extreme / -128, 1.0)).round().clamp(-128, 127)
    scale = (whole * small).flatten(1)
    codes = (groups / torch.where(scale != 0, scale, 1.0).unsqueeze(-1)).round().clamp(-32, 31) + 32
    codes = torch.where(scale.unsqueeze(-1) != 0, codes, 32.0)
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), scale, 6, scale_bits=8, extra_bits=16 * whole.numel())


def _search_scale(groups: Tensor, errors: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(scale [N, groups, 1], codes of groups' shape, `half` for zero) of least sum errors * (scale * (code - half) - w)^2: for 19 widths of the code
    range, round, then solve for the scale.
    """
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    safe = torch.where(peak != 0, peak, 1.0)
    best, most, kept = torch.zeros_like(peak), torch.full_like(peak, -torch.inf), torch.zeros_like(groups)
    for step in sorted(range(-9, 10), key=bool):  # the plain width first: another has to be better
        codes = (groups * (-(half + 0.1 * step) / safe)).round().clamp(-half, half - 1)
        product, square = (errors * groups * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        scale = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0)
        gain = scale * product  # how much of the weighted square the codes explain
        better = gain > most
        best, most, kept = torch.where(better, scale, best), torch.where(better, gain, most), torch.where(better, codes, kept)
    return best, kept + half


def _q4_k(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """8 blocks of 32: 4-bit codes, 6-bit block scales and minima, a 16-bit scale for each of the two."""
    groups = weight.unflatten(1, (-1, 32))
    if importance is None:
        errors = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
        scale, low = _search_scale_and_minimum(groups, errors, torch.arange(21) / 10 - 1)
        wholes = [_round_scales(part, 63) for part in (scale, -low)]
    else:
        spread = 2 * groups.square().unflatten(1, (-1, SUPER // 32)).mean((2, 3), keepdim=True).expand(-1, -1, SUPER // 32, 1).flatten(1, 2)
        errors = _weighed(groups, importance, spread)
        scale, low = _search_scale_and_minimum(groups, errors, torch.arange(37) / 20 - 0.9)
        wholes = [_search_scales(part, errors.sum(-1), 63) for part in (scale, -low)]
    scale, minimum = wholes  # [N, K/32], w = scale * code - minimum
    step = torch.where(scale > 0, scale, torch.where(minimum > 0, minimum, 1.0))  # a block without a scale is the constant -minimum: code 0, zero 1
    codes = ((groups + minimum.unsqueeze(-1)) / step.unsqueeze(-1)).round().clamp(0, 15) * (scale > 0).unsqueeze(-1)
    extra = 32 * weight.numel() // SUPER
    return QuantizedTensor(codes.to(torch.uint8).reshape(weight.shape), step, 4, minimum / step, scale_bits=6, zero_bits=6, extra_bits=extra)


def _round_scales(values: Tensor, top: int) -> Tensor:
    """Non-negative `values` [N, blocks] as whole numbers up to `top` times one 16-bit scale for each 8 of them."""
    part = values.unflatten(1, (-1, SUPER // 32))
    whole = part.amax(-1, keepdim=True) / top
    return (_half(whole) * (part / torch.where(whole > 0, whole, 1.0)).round().clamp(0, top)).flatten(1)


def _search_scales(values: Tensor, errors: Tensor, top: int) -> Tensor:
    """As `_round_scales`, of least sum errors * (scale * whole number - value)^2: among nine scales the best, then one whole number at a time to
    where the rest would have it.
    """
    x, w = values.unflatten(1, (-1, SUPER // 32)), errors.unflatten(1, (-1, SUPER // 32))  # [N, K/256, 8]
    peak = x.amax(-1, keepdim=True)
    safe = torch.where(peak > 0, peak, 1.0)
    best, least = top / safe, torch.full_like(peak, torch.inf)
    for step in sorted(range(-4, 5), key=bool):
        inverse = (top + 0.1 * step) / safe
        loss = (w * (x - (inverse * x).round().clamp(max=top) / inverse).square()).sum(-1, keepdim=True)
        best, least = torch.where(loss < least, inverse, best), torch.minimum(loss, least)
    small = (best * x).round().clamp(0, top)
    product, square = (w * x * small).sum(-1), (w * small.square()).sum(-1)
    for i in list(range(x.shape[-1])) * 5:
        xi, wi, old = x[..., i], w[..., i], small[..., i]
        rest, squares = product - wi * xi * old, square - wi * old.square()
        able = (rest > 0) & (squares > 0)
        new = (xi * squares / torch.where(able, rest, 1.0)).round().clamp(0, top)
        rest, squares = rest + wi * xi * new, squares + wi * new.square()
        better = able & (new != old) & (rest.square() * square > product.square() * squares)
        small[..., i] = torch.where(better, new, old)
        product, square = torch.where(better, rest, product), torch.where(better, squares, square)
    whole = torch.where(square > 0, product / square.clamp(min=1e-38), 0.0).unsqueeze(-1)
    return (_half(whole) * small).flatten(1)


def _search_scale_and_minimum(groups: Tensor, errors: Tensor, wider: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, minimum <= 0), both [N, groups], of least sum errors * (scale * code + minimum - w)^2: for each code range of 15 + `wider` above the best
    minimum so far, round, then solve the weighted least squares for both.
    """
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((groups - low) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, 15)
    least = (errors * (scale * codes + low - groups).square()).sum(-1, keepdim=True)
    total, linear = errors.sum(-1, keepdim=True), (errors * groups).sum(-1, keepdim=True)
    for step in wider.tolist():
        width = torch.where(high > low, high - low, 1.0)
        codes = ((groups - low) * ((15 + step) / width)).round().clamp(0, 15)
        first, second = (errors * codes).sum(-1, keepdim=True), (errors * codes.square()).sum(-1, keepdim=True)
        cross = (errors * groups * codes).sum(-1, keepdim=True)
        determinant = total * second - first.square()
        solvable = determinant > 0
        divisor = torch.where(solvable, determinant, 1.0)
        slope, shift = (total * cross - linear * first) / divisor, (second * linear - first * cross) / divisor
        positive = shift > 0  # no minimum above zero can be stored
        slope = torch.where(positive, torch.where(second > 0, cross / second.clamp(min=1e-38), 0.0), slope)
        shift = shift.clamp(max=0)
        loss = (errors * (slope * codes + shift - groups).square()).sum(-1, keepdim=True)
        better = solvable & (loss < least) & (high > low)
        scale, low, least = torch.where(better, slope, scale), torch.where(better, shift, low), torch.where(better, loss, least)
    return scale.clamp(min=0).squeeze(-1), low.squeeze(-1)
