"""Laws that hold on any trained model, on the bundled one with its real inputs: calibration text to quantize, held-out text to judge."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from explorer import models
from explorer.calibration import advance, first_inputs, record_inputs
from explorer.data import text_of
from explorer.hub import Hub
from explorer.input_statistics import InputStatistics
from explorer.methods import build
from explorer.models import DEMO, blocks, linears
from explorer.rotation import Rotation


class Layer(NamedTuple):
    """weight [N, K] float32; inputs X [M, K] float32 on calibration text and on evaluation text, and their X^T X [K, K]."""

    name: str
    weight: Tensor
    seen: Tensor
    held_out: Tensor
    gram_seen: Tensor
    gram_held_out: Tensor


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    """Every quantizable layer with the 16-bit model's inputs from 4,096 tokens of either half of the bundled text."""
    loaded = models.load(models.resolve("demo", Hub()), torch.device("cpu"), Hub())
    inputs: dict[str, list[Tensor]] = {name: [] for name in linears(loaded.model)}
    for half in ("calibration", "evaluation"):
        batches, arguments = first_inputs(loaded, models.windows(loaded, text_of("bundled", half), 4096, 512))
        names = {id(layer): name for name, layer in linears(loaded.model).items()}
        for block, given in zip(blocks(loaded.model), arguments, strict=True):
            found = record_inputs(block, batches, given, {names[id(m)]: m for m in block.modules() if id(m) in names})
            for name, x in found.items():
                inputs[name].append(x.float())
            with torch.no_grad():
                advance(block, batches, given)
    assert DEMO.is_dir() and all(len(pair) == 2 for pair in inputs.values())
    return [Layer(name, layer.weight.float(), *inputs[name], *(x.T @ x for x in inputs[name])) for name, layer in linears(loaded.model).items()]


def output_error(gram: Tensor, rounded: Tensor, weight: Tensor) -> float:
    """||X (W' - W)^T||^2 / ||X W^T||^2 from X^T X, which costs a tenth of the products themselves."""
    error = rounded - weight
    return ((error @ gram * error).sum() / (weight @ gram * weight).sum()).item()


def errors(layers: list[Layer], method: str, **params: object) -> tuple[list[float], list[float]]:
    """Output error of every layer, (on the calibration text, on held-out text)."""
    chosen = build(method, params)
    rounded = [chosen.quantize(layer.weight, InputStatistics.of(layer.seen) if chosen.reads_inputs() else None, layer.name).dequantize() for layer in layers]
    pairs = list(zip(layers, rounded, strict=True))
    return tuple([output_error(gram(layer), w, layer.weight) for layer, w in pairs] for gram in (lambda at: at.gram_seen, lambda at: at.gram_held_out))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_beat_rounding_layer_by_layer(layers: list[Layer], method: str) -> None:
    grid = {"bits": 3, "symmetric": False}
    plain, plain_held_out = errors(layers, "rtn", **grid)
    seen, held_out = errors(layers, method, **grid)
    better = sum(ours <= theirs for ours, theirs in zip(seen, plain, strict=True))
    assert better >= 0.95 * len(layers), f"{better} of {len(layers)} layers"
    assert sum(held_out) < sum(plain_held_out)


def test_finer_scales_and_more_bits_lower_every_weight_error(layers: list[Layer]) -> None:
    def found(**params: object) -> list[float]:
        method = build("rtn", params)
        return [((method.quantize(w, None).dequantize() - w).norm() / w.norm()).item() for _, w, *_ in layers]

    tensor, channel, group = (found(bits=4, granularity=g) for g in ("tensor", "channel", "group"))
    assert all(a >= b >= c for a, b, c in zip(tensor, channel, group, strict=True))
    ladder = [found(bits=bits, granularity="channel", symmetric=False) for bits in (2, 3, 4, 6, 8)]
    assert all(few > more for fewer, most in itertools.pairwise(ladder) for few, more in zip(fewer, most, strict=True))


def test_rotation_spreads_the_outliers_of_real_inputs(layers: list[Layer]) -> None:
    """Kurtosis and the largest channel over the median one both fall, in total and in nearly every layer that has outliers."""

    def kurtosis(x: Tensor) -> float:
        return (((x - x.mean()) / x.std()) ** 4).mean().item()

    def reach(x: Tensor) -> float:
        peaks = x.abs().amax(0)
        return (peaks.max() / peaks.median()).item()

    for measure in (kurtosis, reach):
        before = [measure(layer.seen) for layer in layers]
        after = [measure(Rotation.of(layer.seen.shape[1], torch.device("cpu")).apply(layer.seen)) for layer in layers]
        assert sum(after) < 0.7 * sum(before)
        assert sum(a < b for a, b in zip(after, before, strict=True)) >= 0.9 * len(layers)


def test_lattice_beats_scalar_grids_at_two_bits(layers: list[Layer]) -> None:
    """Each ingredient of QuIP# pays, and the whole is better than GPTQ on a scalar grid that stores more bits."""
    some = layers[::5]
    whole, no_feedback, not_rotated = (sum(errors(some, "quip", **p)[1]) for p in ({}, {"feedback": False}, {"rotate": False}))
    scalar = sum(errors(some, "gptq", bits=2, symmetric=False, rotate=True)[1])
    assert whole < not_rotated < scalar and whole < no_feedback


def test_smoothquant_beats_naive_int8_where_outliers_are_planted(layers: list[Layer]) -> None:
    """A hundredfold larger channel in real inputs: smoothing must help the naive product, and LLM.int8 must not care."""
    from kernels.op import multiply

    worse = 0
    for layer in layers[::6]:
        x = layer.held_out[:512].clone()
        x[:, 7] *= 100 * x.abs().amax() / x[:, 7].abs().amax()
        exact = x @ layer.weight.T
        found = {}
        for method in ("dynamic_int8", "smoothquant", "llm_int8"):
            q = build(method, {}).quantize(layer.weight, InputStatistics.of(x))
            found[method] = ((multiply(q.transform(x), q.weight()) - exact).norm() / exact.norm()).item()
        worse += found["smoothquant"] > found["dynamic_int8"] or found["llm_int8"] > found["dynamic_int8"]
    assert worse == 0


def test_rounded_inputs_cost_something_and_eight_bits_little(layers: list[Layer]) -> None:
    """Outputs on held-out text, summed over layers: 16-bit inputs first, then MXFP8, NVFP4 and MXFP4, each with the same weights' own error in it."""
    from kernels.op import multiply

    found: dict[tuple[str, str], float] = {}
    for method, activation in (("mxfp", "none"), ("mxfp", "e4m3"), ("mxfp", "block"), ("nvfp4", "none"), ("nvfp4", "block")):
        made = build(method, {"activation": activation})
        total = 0.0
        for layer in layers[::4]:
            x = layer.held_out[:512].bfloat16()
            q = made.quantize(layer.weight, InputStatistics.of(layer.seen, gram=False) if made.reads_inputs() else None)
            exact = x.float() @ layer.weight.T
            total += ((multiply(x, q.weight()) - exact).square().sum() / exact.square().sum()).item()
        found[method, activation] = total
    plain, wide, narrow = (found["mxfp", activation] for activation in ("none", "e4m3", "block"))
    assert plain < wide < narrow and wide - plain < 0.1 * (narrow - plain)
    assert found["nvfp4", "none"] < found["nvfp4", "block"] < narrow and found["nvfp4", "none"] < plain
