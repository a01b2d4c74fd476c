"""Inputs that are infinities or NaN, which int8 has no codes for: whatever rounds or multiplies them keeps the row visibly broken."""

from __future__ import annotations

import pytest
import torch

from explorer.input_statistics import InputStatistics
from explorer.methods import build
from explorer.qlinear import QuantizedLinear
from kernels.bench.check import unable
from kernels.hadamard import Turn, sylvester, turn
from kernels.op import REFERENCE, Activation, multiply, ops, round_activation
from kernels.product import Case, random_weight
from kernels.round_inputs import value

# The Triton interpreter warns where it divides infinity by itself.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
BAD = pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
ROUNDED = [Activation(kind, per, scale) for kind in ("int8", "e4m3") for per, scale in (("token", 0.0), ("tensor", 0.0), ("tensor", 0.02))]
SPLIT = [Activation("int8", threshold=3.0), *(a._replace(columns=(3, 77)) for a in ROUNDED if a.kind == "int8")]


def inputs(k: int, bad: float, at: int = 5) -> torch.Tensor:
    """[3, k], one value of the middle row not finite, the last row all zeros."""
    x = torch.randn(3, k, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[1, at], x[2] = bad, 0
    return x


@BAD
@pytest.mark.parametrize("form", [*ops()["round_inputs"].forms()], ids=lambda form: form.name)
def test_the_scale_of_a_row_says_so(form, bad: float) -> None:
    """All rows share a dynamic scale per tensor; a scale fixed beforehand is told apart by row."""
    x, blocks = inputs(300, bad), inputs(256, bad)
    for a in ROUNDED:
        codes, scale = form.run(x, form.pack(a))
        finite = (codes.float() * scale).isfinite().all(1).tolist()
        assert finite == ([False] * 3 if a.per == "tensor" and not a.scale else [True, False, True]), a
        assert not scale.expand(3, 1)[1].isfinite().any(), a
        if a.scale:
            assert scale.expand(3, 1)[0] == scale.expand(3, 1)[2] == torch.tensor(a.scale)
    for kind in ("e4m3", "e5m2"):
        scale = form.run(blocks, form.pack(Activation(kind, "block")))[1]
        assert scale.isfinite().tolist() == [[True, True], [False, True], [True, True]]


@BAD
@pytest.mark.parametrize("form", [*ops()["hadamard"].forms()], ids=lambda form: form.name)
@pytest.mark.parametrize("kind", ["int8", "e4m3"])
def test_so_does_that_of_a_rotated_row(form, kind: str, bad: float) -> None:
    x, turned = inputs(256, bad), Turn(torch.ones(256, dtype=torch.int8), *(sylvester(16).to(torch.int8),) * 2, Activation(kind))
    codes, scale = form.run(x, form.pack(turned))
    assert scale.isfinite().flatten().tolist() == [True, False, True]
    expected = value(round_activation(turn(x, turned), turned.activation))
    assert torch.allclose(value((codes, scale))[::2], expected[::2], atol=0.02 if kind == "int8" else 0.2)


@BAD
@pytest.mark.parametrize("form", [*ops()["w8a8_int8_matmul"].forms()], ids=lambda form: form.name)
def test_int8_products_do_not_swallow_them(form, bad: float) -> None:
    """In an input that is rounded and in one that stays in 16 bits; the other rows are what they are without, where they share no scale with it."""
    if told := unable(ops()["w8a8_int8_matmul"], form):
        pytest.skip(told)
    for a in [a for a in ROUNDED if a.kind == "int8"] + SPLIT:
        w = random_weight(Case(3, 48, 256, 8, 0, activation=a), torch.Generator().manual_seed(0))
        if form.refuses(w):
            assert form is not REFERENCE
            continue
        for at in (5, 77):
            y, shared = form.run(inputs(256, bad, at), form.pack(w)), a.per == "tensor" and not a.scale and at not in a.columns
            assert not y[1].isfinite().any(), (a, at)
            assert shared or torch.allclose(y[::2], multiply(inputs(256, 0.0, at), w)[::2], atol=0.1), (a, at)


@BAD
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("absmax", {}), ("dynamic_int8", {}), ("dynamic_int8", {"activation": "tensor"}), ("dynamic_int8", {"rotate": True}), ("llm_int8", {}),
        ("llm_int8", {"outliers": "static"}), ("smoothquant", {}), ("smoothquant", {"activation": "static"}), ("fp8", {}), ("fp8", {"activation": "static"}),
        ("mxfp", {"activation": "block"}), ("nvfp4", {"activation": "block"}),
    ],
)  # fmt: skip
def test_a_layer_passes_them_on(method: str, params: dict, bad: float) -> None:
    made, generator = build(method, params), torch.Generator().manual_seed(0)
    read = InputStatistics.of(torch.randn(32, 256, generator=generator)) if made.reads_inputs() else None
    layer = QuantizedLinear(made.quantize(torch.randn(48, 256, generator=generator), read), None, torch.device("cpu"))
    assert not layer(inputs(256, bad).bfloat16())[1].isfinite().any()
