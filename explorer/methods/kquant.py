"""K-quants: the blocks of blocks that llama.cpp stores in GGUF files, with their weighted search for scales and minima."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from explorer.block_search import search_scale, search_scale_and_minimum, settled, widths
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.methods.mixed import Mixed
from explorer.qtensor import QuantizedTensor
from explorer.records import InputError

SUPER = 256  # weights that share the 16-bit scale of all scales
FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # what llama.cpp stores where 256 does not divide a row
MIXTURES = {"q3_k_m": "q3_k", "q4_k_m": "q4_k", "q5_k_m": "q5_k"}  # by what most layers get
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types that the recipes are checked for


@dataclass(frozen=True)
class KQuant(Method):
    """Small blocks need many scales, and 16 bits each is too much; so the scales are quantized as well, to 4, 6 or 8 bits, under one 16-bit scale
    per 256 weights. Scales and minima come from a search for the least weighted error: large weights count more, or, with calibration, weights
    that meet large inputs (the importance matrix). Rows that 256 does not divide become Q4_0, Q5_0, Q5_1 or Q8_0, as in llama.cpp, and the mixtures
    (M) give values and down-projections a wider format, in some blocks or in all.
    """

    name: ClassVar[str] = "kquant"
    title: ClassVar[str] = "K-quants (GGUF)"
    short: ClassVar[str] = "GGUF"
    paper: ClassVar[str] = "llama.cpp, k-quants (pull request 1684), 2023"
    needs_inputs: ClassVar[bool] = True

    format: str = choice(
        "q4_k", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q5_0", "q8_0", *MIXTURES, title="Format",
        help="2.625, 3.4375, 4.5, 5.5, 6.5625, 5.5 and 8.5 bits a weight; 4.5 to 8.5 where 256 does not divide a layer's inputs. M: llama.cpp's mixtures.",
    )  # fmt: skip
    importance: bool = choice(
        False, title="Importance matrix", help="Weigh errors by the mean squared input of each channel on calibration text; Q8_0 has nothing to weigh."
    )

    @property
    def by_name(self) -> bool:
        return self.format in MIXTURES

    def for_model(self, config: Mapping[str, Any]) -> Method:
        if not self.by_name:
            return self
        if config.get("model_type") not in FAMILIES:
            raise InputError(f"The mixture {self.format} is known for {', '.join(FAMILIES)} here; choose {MIXTURES[self.format]} for this model.")
        rules = [(f"*layers.{i}.*{part}", name) for i in range(config["num_hidden_layers"]) for part, name in _wider(self.format, i, config).items()]
        rules.append(("*", MIXTURES[self.format]))
        return Mixed("\n".join(f"{pattern}: kquant format={name} importance={self.importance}" for pattern, name in rules))

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        if self.by_name and layer:
            raise ValueError(f"which format {layer} has in {self.format} depends on the model: see for_model")
        name = self.stored_as(tuple(weight.shape)) or MIXTURES.get(self.format, self.format)
        importance = inputs.mean_square if self.importance else None
        if name in MINIMA:
            return _with_minima(weight, importance, MINIMA[name])
        return {"q3_k": _q3_k, "q6_k": _q6_k, "q4_0": _q4_0, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0}[name](weight, importance)

    def stored_as(self, shape: tuple[int, int], layer: str = "") -> str:
        return "" if shape[1] % SUPER == 0 else FALLBACK.get(MIXTURES.get(self.format, self.format), "")

    def reads_inputs(self) -> bool:
        return self.importance

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"blocks of 32 do not divide its {shape[1]} inputs" if shape[1] % 32 else ""


def _wider(mixture: str, block: int, config: Mapping[str, Any]) -> dict[str, str]:
    """The layers of a block that get another format than most: llama_tensor_get_type_impl of llama.cpp's llama-quant.cpp, for models whose queries, keys
    and values are layers of their own. A model that it takes for Llama-2-70B or Qwen2-72B has few rows of values, which then get Q5_K.
    """
    blocks = config["num_hidden_layers"]
    eighth = blocks // 8
    more = block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2
    shared = config["model_type"] == "qwen2" or config["num_attention_heads"] != (config.get("num_key_value_heads") or config["num_attention_heads"])
    seventy = blocks == 80 and shared and config["model_type"] != "qwen3"
    if mixture == "q3_k_m":
        return {"v_proj": "q5_k" if block < 2 or seventy else "q4_k", "o_proj": "q4_k", "down_proj": "q5_k" if block < blocks // 16 else "q4_k"}
    wider = {"v_proj": "q6_k", "down_proj": "q6_k"} if more else {}
    return wider or ({"v_proj": "q5_k"} if seventy and mixture == "q4_k_m" else {})


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


MINIMA = {
    "q2_k": Minima(2, 16, 15, widths(-0.5, 0.1, 16), absolute=True, spread=1),
    "q4_k": Minima(4, 32, 63, widths(-1.0, 0.1, 21)),
    "q5_k": Minima(5, 32, 63, widths(-0.5, 0.1, 16)),
}
WIDER = widths(-0.9, 0.05, 37)  # with importance, for every format with minima


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
        scale, codes = search_scale(groups, errors, half)
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
        scale, low, codes = search_scale_and_minimum(groups, errors, 31, WIDER)
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
    best, _ = search_scale(groups, errors, 32)
    return _under_one_scale(groups, *_divided(best, 128), 6, 8)


def _q3_k(weight: Tensor, importance: Tensor | None) -> QuantizedTensor:
    """16 blocks of 16: symmetric 3-bit codes, 6-bit block scales, one 16-bit scale."""
    groups = weight.unflatten(1, (-1, 16))
    if importance is None:
        errors, peak = groups.square(), groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        codes = (groups * (-4 / torch.where(peak != 0, peak, 1.0))).round().clamp(-4, 3)
        best, _ = settled(groups, errors, codes, -4, 3)
        return _under_one_scale(groups, *_divided(best, 32), 3, 6)
    errors = _weighed(groups, importance, 2 * _mean_squares(groups))
    best, _ = search_scale(groups, errors, 4)
    whole, small = search_scale(best.view(len(best), -1, SUPER // 16), errors.sum(-1).unflatten(1, (-1, SUPER // 16)), 32)
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


def _with_minima(weight: Tensor, importance: Tensor | None, made: Minima) -> QuantizedTensor:
    """Codes [N, K] with block scales and minima as whole numbers, and a 16-bit scale for each of the two in every super-block."""
    groups, most = weight.unflatten(1, (-1, made.members)), 2**made.bits - 1
    if importance is None:
        errors = groups.abs() if made.absolute else groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
        scale, low, _ = search_scale_and_minimum(groups, errors, most, made.wider, made.absolute)
        wholes = [_round_scales(part, made) for part in (scale, -low)]
    else:
        errors = _weighed(groups, importance, made.spread * _mean_squares(groups))
        scale, low, _ = search_scale_and_minimum(groups, errors, most, WIDER)
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
    whole, small = settled(x, w, (best * x).round().clamp(0, made.top), 0, made.top)
    return (_half(whole) * small).flatten(1)
