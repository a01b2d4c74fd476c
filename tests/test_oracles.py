"""Methods against libraries that nobody here wrote, and against slow transcriptions of the papers' objectives in float64."""

from __future__ import annotations

import pytest
import torch

from explorer.input_statistics import InputStatistics
from explorer.methods import build
from explorer.methods.nf4 import NF4
from explorer.qtensor import dynamic_code
from explorer.rotation import PALEY, Rotation, hadamard
from tests.measuring import error


@pytest.mark.parametrize("double", [False, True])
def test_fp4_agrees_with_bitsandbytes(weight: torch.Tensor, double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes, the FP4 oracle")
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="fp4", compress_statistics=double)
    theirs = functional.dequantize_4bit(packed, state).float()
    ours = build("fp4", {"double_quant": double}).quantize(weight, None).dequantize()
    scale = weight.reshape(64, 4, 64).abs().amax(-1).repeat_interleave(64, 1)
    apart = (ours - theirs).abs() > 1e-3 * scale
    assert apart.float().mean() < 0.01, "only values between two codes, where their thresholds are rounded, may differ"
    assert error(ours, weight) <= error(theirs, weight) * 1.001


@pytest.mark.parametrize(("bits", "whole_zeros"), [(2, False), (3, False), (4, False), (4, True), (8, False)])
def test_hqq_is_as_good_as_hqq(weight: torch.Tensor, bits: int, whole_zeros: bool) -> None:
    """whole_zeros: as the authors' configuration of 4 bits has it; here zeros keep their fraction, as in their others."""
    quantize = pytest.importorskip("hqq.core.quantize", reason="needs hqq, the half-quadratic oracle")
    given = {"nbits": bits, "group_size": 64, "axis": 1, "round_zero": whole_zeros}
    assert quantize.BaseQuantizeConfig(nbits=bits)["weight_quant_params"]["round_zero"] == (bits == 4)
    codes, meta = quantize.Quantizer.quantize(weight.clone(), **given, device="cpu", bitpack=False, compute_dtype=torch.float32)
    theirs = ((codes.float() - meta["zero"]) * meta["scale"]).reshape(weight.shape)
    ours = build("hqq", {"bits": bits, "group_size": 64}).quantize(weight, None).dequantize()
    start = build("rtn", {"bits": bits, "group_size": 64, "symmetric": False}).quantize(weight, None).dequantize()
    norm = lambda w: (w - weight).abs().pow(0.7).mean().item()  # noqa: E731
    assert norm(ours) < 1.02 * norm(theirs)
    assert bits == 8 or whole_zeros or error(ours, theirs) < 0.5 * error(ours, weight), "the two are much closer to each other than to the weight"
    assert bits == 8 or norm(ours) < norm(start)


@pytest.mark.parametrize(("element", "name"), [("e2m1", "float4_e2m1fn_x2"), ("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_mx_agrees_with_torchao(weight: torch.Tensor, element: str, name: str) -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="needs torchao, the MX oracle")
    theirs = mx.MXTensor.to_mx(weight.bfloat16(), getattr(torch, name), 32).dequantize(torch.float32)
    ours = build("mxfp", {"element": element}).quantize(weight, None).dequantize()
    assert torch.equal(ours, theirs)


def test_nvfp4_agrees_with_torchao(weight: torch.Tensor) -> None:
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="needs torchao, the NVFP4 oracle")
    whole = weight.abs().max() / (448 * 6)
    theirs = nv.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=whole).dequantize(torch.float32)
    ours = build("nvfp4", {}).quantize(weight, None).dequantize()
    apart = ((ours - theirs).abs() > 1e-5 * weight.abs().max()).float().mean()
    assert apart < 0.002 and error(ours, theirs) < 0.02, "a scale that lies on a tie may round to the other side"


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_fp8_agrees_with_torch_casts(weight: torch.Tensor, granularity: str) -> None:
    absmax = weight.abs().amax() if granularity == "tensor" else weight.abs().amax(-1, keepdim=True)
    scale = absmax / 448
    theirs = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    ours = build("fp8", {"granularity": granularity, "activation": "none"}).quantize(weight, None).dequantize()
    assert torch.allclose(ours, theirs, rtol=1e-6)


def test_llm_int8_agrees_with_bitsandbytes(weight: torch.Tensor) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, the LLM.int8 oracle")
    from explorer.qlinear import QuantizedLinear

    x = torch.randn(20, 256, generator=torch.Generator().manual_seed(4))
    x[:, 7] *= 30
    layer = bnb.nn.Linear8bitLt(256, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": weight.half()})
    theirs = layer.to("cpu")(x.half()).float()
    q = build("llm_int8", {}).quantize(weight, None)
    ours = QuantizedLinear(q, None, torch.device("cpu"))(x)
    exact = x @ weight.T
    assert error(ours, exact) < 0.02
    assert error(ours, theirs) < max(0.005, 0.5 * error(theirs, exact)) or error(ours, exact) <= 1.05 * error(theirs, exact)
    assert error(QuantizedLinear(build("dynamic_int8", {}).quantize(weight, None), None, torch.device("cpu"))(x), exact) > 2 * error(ours, exact)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_full_symmetric_range_is_that_of_compressed_tensors(weight: torch.Tensor, bits: int) -> None:
    """GPTQ's authors, GPTQModel and torchao define it alike; the fewer bits, the more the code is worth that the textbook's range leaves unused."""
    schemes = pytest.importorskip("compressed_tensors.quantization", reason="needs compressed-tensors, the integer formats' oracle")
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = weight.unflatten(1, (-1, 64))
    asked = schemes.QuantizationArgs(num_bits=bits, group_size=64, strategy="group", symmetric=True)
    theirs = calculate_qparams(groups.amin(-1), groups.amax(-1), asked)[0]
    full, plain = (build("rtn", {"bits": bits, "full_range": on}).quantize(weight, None) for on in (True, False))
    assert torch.allclose(full.scale.float(), theirs, rtol=2**-8) and full.codes.min() == 0 < plain.codes.min()
    assert bits == 8 or error(full.dequantize(), weight) < error(plain.dequantize(), weight)


def test_awq_scale_has_the_least_output_error_of_the_grid(weight: torch.Tensor) -> None:
    """The search by Gram matrix agrees with the paper's objective computed directly in float64, for every one of the 20 ratios."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 256, generator=generator) * torch.rand(256, generator=generator).mul(4).exp()
    method = build("awq", {"bits": 3, "clip": False})
    chosen = method.quantize(weight, InputStatistics.of(x))
    loss = lambda w: (((w.double() - weight.double()) @ x.double().T) ** 2).sum().item()  # noqa: E731
    candidates = []
    for step in range(20):
        s = x.abs().mean(0).pow(step / 20).clamp(min=1e-4)
        s = 1 / (1 / (s / (s.max() * s.min()).sqrt())).bfloat16().float()
        q = build("rtn", {"bits": 3, "symmetric": False}).quantize(weight * s, None).dequantize() / s
        candidates.append(loss(q))
    assert loss(chosen.dequantize()) == pytest.approx(min(candidates), rel=1e-5)
    assert min(candidates) < 0.9 * candidates[0]


@pytest.mark.parametrize("order", [1, 2, 16, *PALEY, 48, 384])
def test_hadamard_rows_are_orthogonal(order: int) -> None:
    h = hadamard(order)
    assert h.abs().eq(1).all() and torch.equal(h @ h.T, order * torch.eye(order))


@pytest.mark.parametrize("width", [64, 80, 96, 100, 384, 1024, 1536])
def test_rotation_is_orthogonal_and_spreads_an_outlier(width: int) -> None:
    turn = Rotation.of(width, torch.device("cpu"))
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    assert error(turn.invert(turn.apply(x)), x) < 1e-5
    w = torch.randn(30, width, generator=torch.Generator().manual_seed(1))
    assert error(turn.apply(x) @ turn.apply(w).T, x @ w.T) < 1e-5
    if width % 64 == 0:
        x[:, 3] *= 50
        kurtosis = lambda v: ((v - v.mean()) ** 4).mean() / v.var() ** 2  # noqa: E731
        assert kurtosis(turn.apply(x)) < 0.3 * kurtosis(x)


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
