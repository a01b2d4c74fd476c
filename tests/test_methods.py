"""Methods: the laws that hold on any weight, exact accounting, and what the packed layer computes."""

from __future__ import annotations

import itertools

import pytest
import torch

from explorer.input_statistics import InputStatistics
from explorer.methods import build, fields_of, label_of, methods, spec_of
from explorer.methods.gptq import hessian
from explorer.qlinear import QuantizedLinear
from explorer.qtensor import quantize_affine
from explorer.records import InputError
from kernels.op import multiply

REAL = [m for m in methods().values() if m.name != "none"]


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """[48, 256] with rows of different size and a few large values, as trained weights have."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(48, 256, generator=generator) * torch.rand(48, 1, generator=generator).mul(0.1).add(0.01)
    w[3, 7] = 1.0
    return w


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """[512, 256] correlated inputs with a few strong channels."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(64, 256, generator=generator)
    x = torch.randn(512, 64, generator=generator) @ mix + 0.3 * torch.randn(512, 256, generator=generator)
    x[:, :4] *= 10
    return x


@pytest.fixture(scope="module")
def seen(inputs: torch.Tensor) -> InputStatistics:
    return InputStatistics.of(inputs)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def every_setting(method: type) -> list:
    grids = {field.name: field.choices or (field.default,) for field in fields_of(method)}
    all_of_them = [method(**dict(zip(grids, values, strict=True))) for values in itertools.product(*grids.values())]
    return [one for one in all_of_them if not one.check()]


@pytest.mark.parametrize("method", REAL, ids=lambda m: m.name)
def test_codes_fit_and_bits_are_counted(method: type, weight: torch.Tensor, seen: InputStatistics) -> None:
    settings = every_setting(method)
    for chosen in settings[:: max(1, len(settings) // 24)]:
        if chosen.refuses(tuple(weight.shape)):
            continue
        q = chosen.quantize(weight, seen)
        assert q.codes.dtype == torch.uint8 and int(q.codes.max()) < 2**q.bits
        assert q.dequantize().isfinite().all()
        assert q.stored_bits() > (q.code_bits or q.bits) * weight.numel()


@pytest.mark.parametrize(
    ("name", "params", "bits_per_weight"),
    [
        ("rtn", {"group_size": 128}, 4 + 16 / 128),
        ("rtn", {"group_size": 128, "symmetric": False}, 4 + (16 + 4) / 128),
        ("rtn", {"group_size": 128, "rotate": True}, 4 + 16 / 128 + 1 / 256),
        ("nf4", {}, 4.5),
        ("fp4", {}, 4.5),
        ("hqq", {}, 4 + 32 / 64),
        ("awq", {"group_size": 128}, 4 + (16 + 4) / 128 + 16 / 256),
        ("mxfp", {"element": "e2m1"}, 4.25),
        ("mxfp", {"element": "e3m2"}, 6.25),
        ("mxfp", {"element": "e4m3"}, 8.25),
        ("nvfp4", {}, 4.5 + 32 / (256 * 256)),
        ("fp8", {"granularity": "tensor"}, 8 + 32 / (256 * 256)),
        ("fp8", {"granularity": "block"}, 8 + 32 / (128 * 128)),
        ("llm_int8", {}, 8 + 16 / 256),
        ("ternary", {"granularity": "channel"}, 2 + 16 / 256),
        ("binary", {}, 1 + 16 / 256),
        ("kquant", {}, 4.5),
        ("kquant", {"format": "q2_k"}, 2.625),
        ("kquant", {"format": "q3_k"}, 3.4375),
        ("kquant", {"format": "q5_k"}, 5.5),
        ("kquant", {"format": "q6_k"}, 6.5625),
        ("kquant", {"format": "q5_0"}, 5.5),
        ("kquant", {"format": "q8_0"}, 8.5),
        ("quip", {}, 2 + 16 / 256 + 1 / 256),
        ("qat", {"bits": 2}, 2 + 16 / 64),
    ],
)
def test_stored_bits_are_exact(name: str, params: dict, bits_per_weight: float) -> None:
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    q = build(name, params).quantize(w, InputStatistics.of(torch.randn(600, 256, generator=torch.Generator().manual_seed(1))))
    assert q.stored_bits() / w.numel() == bits_per_weight


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_finer_groups_never_hurt(weight: torch.Tensor, bits: int, symmetric: bool) -> None:
    tensor, channel, group = (error(quantize_affine(weight, bits, g, 32, symmetric).dequantize(), weight) for g in ("tensor", "channel", "group"))
    assert group <= channel <= tensor


def test_error_halves_with_each_bit(weight: torch.Tensor) -> None:
    errors = [error(quantize_affine(weight, bits, "channel", 0, False).dequantize(), weight) for bits in range(4, 9)]
    for wide, narrow in itertools.pairwise(errors):
        assert 1.7 < wide / narrow < 2.4


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing_twice_changes_nothing(weight: torch.Tensor, symmetric: bool) -> None:
    once = quantize_affine(weight, 4, "group", 64, symmetric).dequantize()
    again = quantize_affine(once, 4, "group", 64, symmetric).dequantize()
    assert error(again, once) < 5e-3  # the bfloat16 scale of a grid that lost its end point may move by one step of 2^-8


def test_nf4_double_quantization_costs_4_127_bits() -> None:
    w = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    q = build("nf4", {"double_quant": True}).quantize(w, None)
    assert abs(q.stored_bits() / w.numel() - 4.127) < 5e-4


def test_nf4_beats_symmetric_int4_on_a_normal_weight() -> None:
    w = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0))
    formats = (("nf4", {}), ("rtn", {"bits": 4, "group_size": 64}))
    nf4, int4 = (error(build(name, params).quantize(w, None).dequantize(), w) for name, params in formats)
    assert nf4 < int4


def naive_gptq(w: torch.Tensor, h: torch.Tensor, scale: torch.Tensor, bits: int, damping: float) -> torch.Tensor:
    """Optimal-brain update in float64 without blocks or Cholesky: after each column, the inverse Hessian loses that column."""
    w, h = w.double().clone(), h.double()
    inverse = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.double))
    result = torch.empty_like(w)
    for i in range(w.shape[1]):
        s = scale.double()[:, 0]
        result[:, i] = (w[:, i] / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s
        e = (w[:, i] - result[:, i]) / inverse[i, i]
        w[:, i:] -= e.unsqueeze(1) * inverse[i, i:]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i, :]) / inverse[i, i]
    return result


def test_gptq_agrees_with_the_direct_float64_solution(weight: torch.Tensor, seen: InputStatistics) -> None:
    method = build("gptq", {"bits": 4, "granularity": "channel", "act_order": False})
    q = method.quantize(weight, seen)
    naive = naive_gptq(weight, hessian(seen), q.scale.float(), 4, method.damping)
    differing = (q.dequantize() != naive.float()).float().mean()
    assert differing < 0.01, "float32 rounding may flip a few codes on a tie, not more"


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_trades_weight_error_for_output_error(weight, inputs, seen, act_order: bool, granularity: str, symmetric: bool) -> None:
    common = {"bits": 3, "granularity": granularity, "group_size": 64, "symmetric": symmetric}
    rtn = build("rtn", common).quantize(weight, None).dequantize()
    gptq = build("gptq", {**common, "act_order": act_order}).quantize(weight, seen).dequantize()
    assert error(inputs @ gptq.T, inputs @ weight.T) < error(inputs @ rtn.T, inputs @ weight.T)
    assert error(gptq, weight) > error(rtn, weight)


def test_gptq_survives_dead_and_duplicate_channels(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    x = inputs.clone()
    x[:, 10] = 0
    x[:, 20] = x[:, 21]
    assert build("gptq", {"damping": 0.0001}).quantize(weight, InputStatistics.of(x)).dequantize().isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        build("gptq", {}).quantize(weight, InputStatistics.of(x * float("nan")))


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("magic", {}, "no method"),
        ("rtn", {"bits": 9}, "bits cannot be"),
        ("rtn", {"bits": True}, "bits cannot be"),
        ("rtn", {"bits": [4]}, "bits cannot be"),
        ("rtn", {"colour": "red"}, "no parameter"),
        ("gptq", {"damping": float("nan")}, "damping cannot be"),
        ("gptq", {"damping": "0.1"}, "damping cannot be"),
        ("fp8", {"granularity": "block", "activation": "static"}, "choose block or none, not static"),
    ],
)
def test_bad_parameters_are_a_sentence(name: str, params: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        build(name, params)
    assert str(caught.value).endswith(".")


def test_unused_parameters_do_not_change_the_key() -> None:
    assert spec_of(build("rtn", {"granularity": "channel", "group_size": 32})) == spec_of(build("rtn", {"granularity": "channel"}))


@pytest.mark.parametrize(
    ("name", "params", "label"),
    [
        ("none", {}, "16-bit baseline"),
        ("rtn", {}, "RTN 4-bit g64"),
        ("rtn", {"bits": 8, "granularity": "channel"}, "RTN 8-bit per-channel"),
        ("rtn", {"symmetric": False}, "RTN 4-bit g64 asymmetric"),
        ("gptq", {"act_order": False, "damping": 0.05}, "GPTQ 4-bit g64 no act-order damping 0.05"),
    ],
)
def test_label_is_short_and_tells_configurations_apart(name: str, params: dict, label: str) -> None:
    assert label_of(build(name, params)) == label


@pytest.mark.parametrize("name", ["gptq", "awq"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_calibrated_methods_lower_the_output_error(weight: torch.Tensor, inputs: torch.Tensor, seen: InputStatistics, name: str, bits: int) -> None:
    rtn = build("rtn", {"bits": bits, "symmetric": False}).quantize(weight, None).dequantize()
    ours = build(name, {"bits": bits, "symmetric": False}).quantize(weight, seen).dequantize()
    assert error(inputs @ ours.T, inputs @ weight.T) < error(inputs @ rtn.T, inputs @ weight.T)


@pytest.mark.parametrize(("name", "params"), [("awq", {}), ("smoothquant", {}), ("rtn", {"rotate": True}), ("gptq", {"rotate": True})])
def test_transforms_preserve_the_function(weight: torch.Tensor, inputs: torch.Tensor, seen: InputStatistics, name: str, params: dict) -> None:
    """Before rounding: transformed inputs times transformed weights are the old product, to 1e-5 in float32."""
    q = build(name, params).quantize(weight, seen)
    moved = weight if q.channel_scale is None else weight * q.channel_scale
    moved = moved if q.rotation is None else q.rotation.apply(moved)
    assert error(q.transform(inputs) @ moved.T, inputs @ weight.T) < 1e-5


@pytest.mark.parametrize("method", REAL, ids=lambda m: m.name)
def test_layer_computes_what_the_tensor_means(method: type, weight: torch.Tensor, inputs: torch.Tensor, seen: InputStatistics) -> None:
    """The packed layer that runs agrees with dequantize(), with activations rounded as the tensor says, to the precision of its inputs."""
    settings = [chosen for chosen in every_setting(method) if not chosen.refuses(tuple(weight.shape))]
    x = inputs[:40].bfloat16()
    for chosen in settings[:: max(1, len(settings) // 12)]:
        q = chosen.quantize(weight, seen)
        layer = QuantizedLinear(q, None, torch.device("cpu"))
        expected = multiply(q.transform(x.float()), q.weight())
        assert error(layer(x).float(), expected) < (0.02 if q.activation else 0.008), chosen


def test_smoothquant_beats_naive_int8_once_outliers_are_planted(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    x = inputs / inputs.abs().amax(0)
    x[:, [5, 77]] *= 100
    exact = x @ weight.T
    for granularity in ("tensor", "channel"):
        naive, smooth, kept = (
            multiply(q.transform(x), q.weight())
            for q in (
                build("dynamic_int8", {"granularity": granularity}).quantize(weight, None),
                build("smoothquant", {"granularity": granularity}).quantize(weight, InputStatistics.of(x)),
                build("llm_int8", {}).quantize(weight, None),
            )
        )
        assert error(smooth, exact) < error(naive, exact) and error(kept, exact) < error(naive, exact)


def test_static_scale_clips_what_calibration_did_not_see(weight: torch.Tensor, inputs: torch.Tensor, seen: InputStatistics) -> None:
    for name in ("smoothquant", "fp8"):
        q = build(name, {"activation": "static"}).quantize(weight, seen)
        within, beyond = (error(multiply(q.transform(x), q.weight()), x @ weight.T) for x in (inputs, 10 * inputs))
        assert within < 0.05 < beyond


def test_error_falls_from_binary_to_int8(weight: torch.Tensor) -> None:
    """By the bits they store, formats lie where they should, and nothing below three bits is close to the weight."""
    ladder = (("binary", {}), ("ternary", {"granularity": "channel"}), ("rtn", {"bits": 2, "symmetric": False}), ("mxfp", {}), ("nf4", {}),
              ("mxfp", {"element": "e2m3"}), ("absmax", {}))  # fmt: skip
    found = [error(build(name, params).quantize(weight, None).dequantize(), weight) for name, params in ladder]
    assert found[0] > 0.5 and found[1] > 0.3 and found[3] < 0.2
    assert found[-1] < found[-2] < found[-3] < found[2] < found[0]


def test_mse_clip_lowers_the_loss_it_minimises(weight: torch.Tensor) -> None:
    heavy = weight.sign() * weight.abs().pow(1.5)
    loss = lambda q: (q.dequantize() - heavy).abs().pow(2.4).sum().item()  # noqa: E731
    for symmetric in (True, False):
        common = {"bits": 3, "granularity": "channel", "symmetric": symmetric}
        assert loss(build("rtn", {**common, "clip": True}).quantize(heavy, None)) < 0.9 * loss(build("rtn", common).quantize(heavy, None))


def test_llm_int8_without_outliers_is_plain_int8(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    x = inputs.clamp(-5, 5)
    kept, plain = (build(name, {}).quantize(weight, None) for name in ("llm_int8", "dynamic_int8"))
    assert torch.equal(multiply(x, kept.weight()), multiply(x, plain.weight()))


@pytest.mark.parametrize("method", REAL, ids=lambda m: m.name)
def test_degenerate_weights_give_a_defined_result(method: type, seen: InputStatistics) -> None:
    """All zeros, a constant row, one huge value, tiny values: finite, and zeros stay zeros wherever the format has a zero."""
    zeros, huge = torch.zeros(16, 256), torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    huge[3], huge[5, 7], huge[6] = 0.5, 1e4, 1e-30
    for w in (zeros, huge):
        q = build(method.name, {}).quantize(w, seen)
        assert q.dequantize().isfinite().all(), "not finite"
        assert w is not zeros or q.dequantize().abs().max() < 1e-6, "a weight of zeros must stay zero"
