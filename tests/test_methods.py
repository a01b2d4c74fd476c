"""Methods: the laws that hold on any weight, exact accounting, and oracles nobody here wrote."""

from __future__ import annotations

import itertools

import pytest
import torch

from explorer.methods import build, fields_of, label_of, methods, spec_of
from explorer.methods.gptq import hessian
from explorer.methods.nf4 import NF4, dynamic_code
from explorer.qtensor import quantize_affine
from explorer.records import InputError

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


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def every_setting(method: type) -> list:
    grids = [field.choices or (field.default,) for field in fields_of(method)]
    names = [field.name for field in fields_of(method)]
    return [build(method.name, dict(zip(names, values, strict=True))) for values in itertools.product(*grids)]


@pytest.mark.parametrize("method", REAL, ids=lambda m: m.name)
def test_codes_fit_and_bits_are_counted(method: type, weight: torch.Tensor, inputs: torch.Tensor) -> None:
    settings = every_setting(method)
    for chosen in settings[:: max(1, len(settings) // 24)]:
        q = chosen.quantize(weight, inputs)
        assert q.codes.dtype == torch.uint8 and int(q.codes.max()) < 2**q.bits
        assert q.dequantize().isfinite().all()
        if q.nested is None:
            scales = q.scale.numel() * q.scale.element_size() * 8
            assert q.stored_bits() == q.bits * weight.numel() + scales + (q.bits * q.zero.numel() if q.zero is not None else 0)


@pytest.mark.parametrize(("symmetric", "bits_per_weight"), [(True, 4.125), (False, 4.15625)])
def test_published_bits_per_weight_of_int4_g128(weight: torch.Tensor, symmetric: bool, bits_per_weight: float) -> None:
    q = quantize_affine(weight, 4, "group", 128, symmetric)
    assert q.stored_bits() / weight.numel() == bits_per_weight


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


def test_zero_weights_stay_zero() -> None:
    for name, params in (("rtn", {}), ("nf4", {}), ("nf4", {"double_quant": True})):
        q = build(name, params).quantize(torch.zeros(16, 256), None)
        assert q.dequantize().abs().max() == 0


def test_nf4_agrees_with_bitsandbytes(weight: torch.Tensor) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes, the NF4 oracle")
    code = functional.get_4bit_type("nf4", device="cpu")
    assert torch.allclose(torch.tensor(NF4), code.flatten(), atol=1e-7)
    for double in (False, True):
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        theirs = functional.dequantize_4bit(packed, state)
        ours = build("nf4", {"double_quant": double}).quantize(weight, None).dequantize()
        assert error(ours, theirs.float()) < 1e-3 if double else torch.allclose(ours, theirs.float(), atol=1e-7)


def test_dynamic_code_agrees_with_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes, the oracle of the dynamic code")
    assert torch.allclose(dynamic_code(), functional.create_dynamic_map(signed=True).float(), atol=1e-6)


def test_nf4_double_quantization_costs_4_127_bits() -> None:
    w = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0))
    q = build("nf4", {"double_quant": True}).quantize(w, None)
    assert abs(q.stored_bits() / w.numel() - 4.127) < 5e-4


def test_nf4_beats_symmetric_int4_on_a_normal_weight() -> None:
    w = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0))
    nf4 = error(build("nf4", {}).quantize(w, None).dequantize(), w)
    int4 = error(build("rtn", {"bits": 4, "group_size": 64}).quantize(w, None).dequantize(), w)
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


def test_gptq_agrees_with_the_direct_float64_solution(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    method = build("gptq", {"bits": 4, "granularity": "channel", "act_order": False})
    q = method.quantize(weight, inputs)
    naive = naive_gptq(weight, hessian(inputs), q.scale.float(), 4, method.damping)
    differing = (q.dequantize() != naive.float()).float().mean()
    assert differing < 0.01, "float32 rounding may flip a few codes on a tie, not more"


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_trades_weight_error_for_output_error(weight, inputs, act_order: bool, granularity: str, symmetric: bool) -> None:
    common = {"bits": 3, "granularity": granularity, "group_size": 64, "symmetric": symmetric}
    rtn = build("rtn", common).quantize(weight, None).dequantize()
    gptq = build("gptq", {**common, "act_order": act_order}).quantize(weight, inputs).dequantize()
    assert error(inputs @ gptq.T, inputs @ weight.T) < error(inputs @ rtn.T, inputs @ weight.T)
    assert error(gptq, weight) > error(rtn, weight)


def test_gptq_survives_dead_and_duplicate_channels(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    x = inputs.clone()
    x[:, 10] = 0
    x[:, 20] = x[:, 21]
    assert build("gptq", {"damping": 0.0001}).quantize(weight, x).dequantize().isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        build("gptq", {}).quantize(weight, x * float("nan"))


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
    ],
)
def test_bad_parameters_are_a_sentence(name: str, params: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        build(name, params)
    assert str(caught.value).endswith(".")


def test_unused_parameters_do_not_change_the_key() -> None:
    assert spec_of(build("rtn", {"granularity": "channel", "group_size": 32})) == spec_of(build("rtn", {"granularity": "channel"}))


def test_group_that_does_not_divide_is_refused_with_a_reason() -> None:
    assert "does not divide" in build("rtn", {"group_size": 128}).refuses((64, 80))
    assert build("rtn", {"granularity": "channel"}).refuses((64, 80)) == ""


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
