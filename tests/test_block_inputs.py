"""Inputs rounded to MX and NVFP4 blocks: the rounding against libraries, its ends, all forms bit for bit, and layers that are joined."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import build, label_of
from explorer.qlinear import QuantizedLinear, join
from explorer.qtensor import concatenate
from kernels import formats
from kernels.floats import FORMATS, LARGEST, float_values, nearest
from kernels.op import BLOCKS, Activation, dequantize, factor, multiply, ops, power_of_two, round_activation
from kernels.product import Case, random_weight
from kernels.round_blocks import fp4_codes, torch_values, triton_values

CPU = torch.device("cpu")
MX = [Activation(kind, "mx") for kind in FORMATS]
ALL = [*MX, Activation("e2m1", "nvfp4", 0.0015), Activation("e2m1", "nvfp4", 2.0**-9)]


def name_of(a: Activation) -> str:
    return a.name() if a.per == "mx" else f"{a.name()} {a.scale}"


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    """[40, 256] bfloat16 numbers as layers see them, some channels strong, so that ties between two elements occur."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 256, generator=generator)
    x[:, :9] *= 30
    return x.bfloat16()


def rounded(x: Tensor, a: Activation) -> Tensor:
    """What the definition makes of inputs [M, K], float32."""
    elements, scale = round_activation(x, a)
    return (elements.unflatten(1, (-1, BLOCKS[a.per])) * scale.unsqueeze(-1)).flatten(1)


@pytest.mark.parametrize(("kind", "name"), [("e2m1", "float4_e2m1fn_x2"), ("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_mx_inputs_are_rounded_as_torchao_does(inputs: Tensor, kind: str, name: str) -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="needs torchao, the MX oracle")
    theirs = mx.MXTensor.to_mx(inputs, getattr(torch, name), 32).dequantize(torch.float32)
    assert torch.equal(rounded(inputs, Activation(kind, "mx")), theirs)


def test_nvfp4_inputs_are_rounded_as_torchao_does(inputs: Tensor) -> None:
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="needs torchao, the NVFP4 oracle")
    unit = inputs.float().abs().max() / (448 * 6)
    theirs = nv.NVFP4Tensor.to_nvfp4(inputs.float(), per_tensor_scale=unit).dequantize(torch.float32)
    ours = rounded(inputs, Activation("e2m1", "nvfp4", unit.item()))
    apart = ((ours - theirs).abs() > 1e-5 * inputs.float().abs()).float().mean()
    assert apart < 0.002 and (ours - theirs).norm() < 0.01 * theirs.norm(), "a scale that lies on a tie may round to the other side"


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_of_a_float_stays_and_ties_go_to_even(name: str) -> None:
    values = float_values(name)[: 2 ** (FORMATS[name][0] - 1)].unique()
    assert LARGEST[name] == values[-1] and torch.equal(nearest(values, name), values) and torch.equal(nearest(-values, name), -values)
    halfway = (values[1:] + values[:-1]) / 2
    even = torch.where(torch.arange(len(halfway)) % 2 == 0, values[:-1], values[1:])
    assert torch.equal(nearest(halfway, name), even) and torch.equal(nearest(-halfway, name), -even)
    assert torch.equal(nearest(halfway.nextafter(values[1:]), name), values[1:]) and torch.equal(nearest(halfway.nextafter(values[:-1]), name), values[:-1])
    assert nearest(torch.tensor([1e30, -1e30]), name).tolist() == [values[-1], -values[-1]] and nearest(torch.tensor([torch.nan]), name).isnan().all()


@pytest.mark.parametrize("kind", FORMATS)
def test_scales_are_powers_of_two_by_the_specification(kind: str) -> None:
    largest = LARGEST[kind]
    top = 2.0 ** (int(torch.tensor(largest).log2().floor()))
    absmax = torch.tensor([1.0, 1.99, 2.0, 3.0 * 2**100, 2.0 * (1 - 2**-24), 2.0**-140, 0.0, torch.finfo(torch.float32).max])
    expected = [1 / top, 1 / top, 2 / top, 2.0**101 / top, 1 / top, 2.0**-127, 2.0**-127, 2.0**127 / top]
    assert power_of_two(absmax, kind).tolist() == expected
    assert power_of_two(torch.tensor([torch.inf, torch.nan]), kind).isinf().all()


def edges(dtype: torch.dtype) -> Tensor:
    """[8, 160]: zeros of both signs, ties, numbers at both ends of the dtype, blocks of very different size, infinity and NaN in single blocks."""
    x = torch.randn(8, 160, generator=torch.Generator().manual_seed(6))
    x[0], x[1] = 0.0, -0.0
    x[2] = (x[2] * 8).round() / 4
    x[3] *= 2.0 ** torch.arange(-20, 12, 0.2)
    x[4, ::3] = min(torch.finfo(dtype).max, 1e30)
    x[5] = torch.where(torch.arange(160) % 7 == 0, torch.finfo(dtype).tiny, 0.0)
    x = x.to(dtype)
    x[6, 5], x[7, 40], x[7, 150] = torch.inf, torch.nan, -torch.inf
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("a", ALL, ids=name_of)
def test_forms_agree_to_the_last_bit_at_the_ends_too(a: Activation, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With outputs that hold NaN until they are written. NaN and infinities stay in their block, as NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(torch.nan))
    x = edges(dtype)
    by_triton, by_torch = triton_values(x, a), torch_values(x, a)
    assert by_triton.dtype == by_torch.dtype == dtype
    bad = torch.zeros(8, 160 // BLOCKS[a.per], dtype=torch.bool)
    for row, column in ((6, 5), (7, 40), (7, 150)):
        bad[row, column // BLOCKS[a.per]] = True
    assert torch.equal(by_torch.isnan(), bad.repeat_interleave(BLOCKS[a.per], 1)) and torch.equal(by_triton.isnan(), by_torch.isnan())
    assert by_torch.nan_to_num(0.0).isfinite().all() and (by_torch[:2] == 0).all()
    tolerance = 1e-6 if dtype is torch.float32 else 0  # in 16 bits every value is exact
    assert torch.allclose(by_triton.float(), by_torch.float(), rtol=tolerance, atol=0, equal_nan=True)
    assert torch.allclose(by_torch.float() * factor(a), rounded(x, a), rtol=1e-6, atol=torch.finfo(torch.float16).tiny / 1024, equal_nan=True)


@pytest.mark.parametrize("a", [a for a in ALL if a.kind == "e2m1"], ids=name_of)
def test_fp4_codes_and_scales_mean_the_rounded_inputs(a: Activation) -> None:
    x = edges(torch.bfloat16)
    codes, scale = fp4_codes(x, a.per, a.scale)
    assert codes.shape == (8, 80) and scale.shape == (8, 160 // BLOCKS[a.per])
    elements = float_values("e2m1")[torch.stack([codes & 15, codes >> 4], -1).flatten(1).long()]
    numbers = torch.exp2(scale.float() - 127).masked_fill(scale == 255, torch.nan) if a.per == "mx" else scale.float() * a.scale
    expected = rounded(x, a)
    assert torch.allclose(elements * numbers.repeat_interleave(BLOCKS[a.per], 1), expected, rtol=1e-6, atol=0, equal_nan=True) and expected.isnan().any()


@pytest.mark.parametrize("a", ALL, ids=name_of)
def test_values_are_exact_in_bfloat16(inputs: Tensor, a: Activation) -> None:
    wide = torch_values(inputs.float(), a)
    assert torch.allclose(wide.bfloat16().float(), wide, rtol=1e-6, atol=0)
    assert 1 <= factor(a) < 2 and wide.abs().max() * factor(a) < 1.3 * inputs.float().abs().max()  # an element rounds up by 5 to 6 at most, a scale by 1.07


@pytest.mark.parametrize("case", ops()["block_float_matmul"].timed, ids=lambda case: case.format())
def test_a_product_is_that_of_the_rounded_values(case: Case, inputs: Tensor) -> None:
    weight = random_weight(Case(40, 48, 256, case.bits, case.group, codebook=case.codebook, scale=case.scale, activation=case.activation), torch.Generator())
    exact = rounded(inputs, case.activation).double() @ dequantize(weight).double().T
    assert torch.allclose(multiply(inputs, weight).double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max())
    x = inputs.clone()
    x[3, 100] = torch.nan
    for form in ops()["block_float_matmul"].cpu:
        if not form.refuses(weight):
            y = form.run(x, form.pack(weight))
            assert y[3].isnan().all() and y[[0, 1, 2, *range(4, 40)]].isfinite().all(), form.name


@pytest.mark.parametrize(("method", "params"), [("nvfp4", {}), ("mxfp", {}), ("mxfp", {"element": "e4m3"})], ids=["nvfp4", "e2m1", "e4m3"])
@pytest.mark.parametrize("activation", ["none", "block"])
def test_joined_layers_are_the_separate_ones(method: str, params: dict, activation: str, inputs: Tensor) -> None:
    """And NVFP4's scales of a joined layer are still E4M3 numbers times the unit that the layers share, and so is what its inputs are multiples of."""
    made, generator = build(method, params | {"activation": activation}), torch.Generator().manual_seed(7)
    weights = {name: torch.randn(n, 256, generator=generator).bfloat16() * size for name, n, size in (("q", 64, 0.1), ("k", 32, 0.5), ("v", 32, 0.02))}
    read = InputStatistics.of(1.3 * inputs) if made.reads_inputs() else None
    tensors = [q for _, q in made.quantize_together(weights, read, None)]
    layers = [QuantizedLinear(q, None, CPU) for q in tensors]
    together = join(layers)
    assert together is not None and together.kernel == layers[0].kernel
    assert torch.equal(together.rows(inputs), torch.cat([layer.rows(inputs) for layer in layers], 1))
    assert len({q.activation for q in tensors}) == 1 and (tensors[0].activation is None) == (activation == "none")
    if method == "nvfp4":
        assert formats.pack(concatenate(tensors).weight()._replace(activation=None)).meta[0].scale_kind == "e4m3"


def test_names_and_what_is_read() -> None:
    labels = {("nvfp4", "none"): "NVFP4", ("nvfp4", "block"): "NVFP4 inputs block", ("mxfp", "none"): "MX e2m1", ("mxfp", "e4m3"): "MX e2m1 inputs e4m3"}
    for (method, activation), label in labels.items():
        made = build(method, {"activation": activation})
        assert label_of(made) == label and made.reads_inputs() == ((method, activation) == ("nvfp4", "block"))
    assert build("mxfp", {"element": "e4m3", "activation": "e4m3"}) == build("mxfp", {"element": "e4m3", "activation": "block"})
    weight, read = torch.randn(32, 64), InputStatistics.of(torch.full((4, 64), -26.88))
    assert build("nvfp4", {"activation": "block"}).quantize(weight, read).activation == Activation("e2m1", "nvfp4", pytest.approx(0.01))
    assert build("mxfp", {"activation": "e4m3"}).quantize(weight, None).activation == Activation("e4m3", "mx")
    unread = build("nvfp4", {"activation": "block"}).quantize(weight, InputStatistics.of(torch.zeros(4, 64)))  # calibration text that never reached the layer
    assert unread.activation.scale > 0 and multiply(torch.zeros(2, 64), unread.weight()).abs().max() == 0


def test_nvfp4_clips_inputs_beyond_what_calibration_saw_and_mx_does_not(inputs: Tensor) -> None:
    weight, x = torch.randn(32, 256, generator=torch.Generator().manual_seed(8)), inputs.float()
    errors = {}
    for method in ("nvfp4", "mxfp"):
        q = build(method, {"activation": "block"}).quantize(weight, InputStatistics.of(x))
        for times in (1, 16):
            exact = times * x @ weight.T
            errors[method, times] = ((multiply(times * x, q.weight()) - exact).norm() / exact.norm()).item()
    assert errors["nvfp4", 1] < 0.2 and errors["nvfp4", 16] > 0.5
    assert errors["mxfp", 1] < 0.3 and errors["mxfp", 16] == pytest.approx(errors["mxfp", 1])
