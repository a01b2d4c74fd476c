"""The arithmetic of bits, bytes, rooflines and prices that questions and stories ask for: pure functions, checked in tests against the code that runs.

Sizes are bytes and bits; GiB is 2^30 bytes, GB 10^9. Parameters are counts. Standard library only.
"""

from __future__ import annotations

import math
import statistics

GIB = 2.0**30


def stored_bits(bits: float, group: int, scale_bits: int = 16, zero_bits: int = 0) -> float:
    """Bits a weight with one scale (and zero) for `group` weights."""
    return bits + (scale_bits + zero_bits) / group


def nested_bits(bits: float, block: int = 64, run: int = 256) -> float:
    """Bits a weight under double quantization (QLoRA, section 3): an 8-bit scale a block, one float32 for `run` of those."""
    return bits + 8 / block + 32 / (block * run)


def block_float_bits(element_bits: int, block: int, scale_bits: int = 8) -> float:
    """Bits a weight of a block float: MXFP4 is (4, 32), NVFP4 (4, 16)."""
    return element_bits + scale_bits / block


def mixed_bits(share: float, high: float, low: float) -> float:
    """Mean bits when a share of the weights has `high` bits and the rest `low`."""
    return share * high + (1 - share) * low


def weight_bytes(parameters: float, bits: float) -> float:
    """Bytes of so many weights."""
    return parameters * bits / 8


def weight_gib(parameters: float, bits: float) -> float:
    return weight_bytes(parameters, bits) / GIB


def kept_bytes(parameters: float, kept: float, bits: float) -> float:
    """Bytes of a model of which `kept` parameters stay in 16 bits and the others take `bits`."""
    return 2 * kept + weight_bytes(parameters - kept, bits)


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, bits: float = 16) -> float:
    """Bytes that one token adds to the cache: a key and a value in every layer."""
    return 2 * layers * kv_heads * head_dim * bits / 8


def kv_gib(layers: int, kv_heads: int, head_dim: int, tokens: int, bits: float = 16) -> float:
    """GiB of the cache of so many tokens, over all users."""
    return kv_bytes_per_token(layers, kv_heads, head_dim, bits) * tokens / GIB


def users_that_fit(card_gib: float, weights_gib: float, each_gib: float, reserve_gib: float = 2.0) -> int:
    """Users whose caches fit beside the weights and a reserve for activations and the runtime."""
    return max(0, math.floor((card_gib - weights_gib - reserve_gib) / each_gib))


def decode_limit(bandwidth: float, bytes_per_token: float) -> float:
    """Tokens/s if reading bytes_per_token at `bandwidth` bytes/s were all that takes time: the bandwidth side of the roofline."""
    return bandwidth / bytes_per_token


def milliseconds(bytes_read: float, bandwidth: float) -> float:
    """Time to read so many bytes, ms."""
    return 1000 * bytes_read / bandwidth


def ridge_batch(flops: float, bandwidth: float, bits: float) -> float:
    """Rows at which a product of weights of `bits` stops being bound by reading them: 2 FLOP a weight and row against bits/8 bytes a weight."""
    return flops / bandwidth * bits / 16


def intensity(rows: int, bits: float) -> float:
    """FLOP per byte of weights that a product of so many rows does."""
    return 2 * rows / (bits / 8)


def amdahl(share: float, speedup: float) -> float:
    """Overall speedup when `share` of the time gets `speedup` times faster."""
    return 1 / (1 - share + share / speedup)


def dollars_per_million(dollars_per_hour: float, tokens_per_second: float) -> float:
    """Price of a million tokens at a measured rate."""
    return dollars_per_hour / (tokens_per_second * 3600) * 1e6


def step_symmetric(absmax: float, bits: int) -> float:
    """The scale of symmetric rounding: absmax / (2^(b-1) - 1)."""
    return absmax / (2 ** (bits - 1) - 1)


def step_asymmetric(low: float, high: float, bits: int) -> float:
    """The scale of asymmetric rounding: (max - min) / (2^b - 1), with 0 in the range."""
    return (max(high, 0.0) - min(low, 0.0)) / (2**bits - 1)


def zero_point(low: float, high: float, bits: int) -> int:
    """The code that means 0: round(-min / scale)."""
    return round(-min(low, 0.0) / step_asymmetric(low, high, bits))


def code_symmetric(value: float, absmax: float, bits: int) -> int:
    """The signed code of a value."""
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(value / step_symmetric(absmax, bits))))


def zeroed_below(absmax: float, bits: int) -> float:
    """Magnitudes below this round to 0 under a symmetric scale: half a step."""
    return step_symmetric(absmax, bits) / 2


def codes_per_word(bits: int, word: int = 32) -> int:
    """Whole codes that fit a machine word."""
    return word // bits


def scales_of(rows: int, columns: int, group: int) -> int:
    """Scales of a weight [rows, columns] with groups along the columns."""
    return rows * columns // group


def float_step(value: float, mantissa_bits: int) -> float:
    """Distance between neighbouring floats at a normal value."""
    return 2.0 ** (math.floor(math.log2(abs(value))) - mantissa_bits)


def mx_scale(absmax: float, largest_exponent: int = 2) -> float:
    """The power-of-two scale of an MX block: 2^(floor(log2 absmax) - largest exponent of the element); 2 for E2M1, 8 for E4M3."""
    return 2.0 ** (math.floor(math.log2(absmax)) - largest_exponent)


def smooth_scale(input_peak: float, weight_peak: float, alpha: float) -> float:
    """SmoothQuant's s_j: inputs are divided by it, weights multiplied."""
    return input_peak**alpha / weight_peak ** (1 - alpha)


def safe_terms(bits: int, accumulator: int = 32) -> int:
    """Products of two signed codes of at most 2^(b-1) - 1 in magnitude that a signed accumulator certainly holds."""
    return (2 ** (accumulator - 1) - 1) // (2 ** (bits - 1) - 1) ** 2


def hessian_bytes(columns: int) -> int:
    """GPTQ's Hessian of a layer in float32."""
    return 4 * columns * columns


def interval_ratio(tokens: float, more: float) -> float:
    """How many times narrower an interval gets with `more` tokens instead of `tokens`."""
    return math.sqrt(more / tokens)


def brier(confidence: float, outcome: float) -> float:
    """Squared distance of a stated probability from what happened; 0 is best, 0.25 is always saying 50%."""
    return (confidence - outcome) ** 2


def median(values: list[float]) -> float:
    """Median."""
    return statistics.median(values)


FUNCTIONS = {name: item for name, item in list(globals().items()) if callable(item) and getattr(item, "__module__", "") == __name__}
