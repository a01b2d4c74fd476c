"""bfloat16 products on a CPU that has no units for them: the same numbers by way of float32, for one row and for many, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from explorer import models
from explorer.hub import Hub
from explorer.models import Dense
from kernels import linear16, native
from tests.test_native import needs_compiler


@pytest.fixture(autouse=True)
def no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear16, "has_units", lambda: False)
    monkeypatch.setattr(models, "has_units", lambda: False)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 50])
@pytest.mark.parametrize(("n", "k"), [(96, 64), (37, 33), (1, 1), (9, 5000)])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_product_to_a_rounding(built: bool, rows: int, n: int, k: int, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not built:
        monkeypatch.setattr(native, "library", lambda: (None, "not built"))
    elif native.library()[1]:
        pytest.skip(f"needs the C library: {native.library()[1]}")
    monkeypatch.setattr(linear16, "PART", 10 * k)  # several parts, the last one shorter
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((2, rows, k), (n, k), (n,)))
    y = linear16.linear(x, weight, bias if biased else None)
    exact = nn.functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert y.shape == exact.shape and y.dtype == torch.bfloat16 and ((y - exact).norm() / exact.norm()).item() < 4e-3


@needs_compiler
def test_c_reads_no_number_beyond_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies around inputs and weights is NaN, and so is what is not written."""
    new = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *size, **options: new(x, *size, **options).fill_(torch.nan))
    generator = torch.Generator().manual_seed(0)
    for rows, n, k in ((1, 5, 7), (4, 3, 47), (6, 17, 129)):
        x, weight = (torch.full((m + 2, k), torch.nan, dtype=torch.bfloat16) for m in (rows, n))
        for t in (x, weight):
            t[1:-1] = torch.randn(len(t) - 2, k, generator=generator)
        y, exact = linear16.few(x[1:-1], weight[1:-1]), x[1:-1].double() @ weight[1:-1].double().T
        assert ((y - exact).norm() / exact.norm()).item() < 4e-3


def test_what_c_does_not_serve_goes_to_torch() -> None:
    x, weight = torch.randn(2, 8).bfloat16(), torch.randn(8, 4).bfloat16()
    assert (
        not linear16.fits(x, weight.T) and not linear16.fits(x, weight.T.contiguous().requires_grad_()) and not linear16.fits(x[:, :4], weight.T.contiguous())
    )
    assert torch.equal(linear16.linear(x, weight.T), nn.functional.linear(x, weight.T))
    with pytest.raises(RuntimeError):
        linear16.linear(x[:, :4], weight.T.contiguous())
    assert linear16.linear(x[:0], weight.T.contiguous()).shape == (0, 4)


@pytest.mark.parametrize("rows", [2, 70])
def test_a_bias_that_c_would_misread_goes_to_torch(rows: int) -> None:
    """Another dtype is refused as torch refuses it, with few rows and many; what does not lie as it is read is added by torch; a gradient is kept."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((rows, 64), (32, 64), (64,)))
    for wrong in (bias[:32].float(), bias[:32].half(), bias[:8]):
        with pytest.raises(RuntimeError):
            linear16.linear(x, weight, wrong)
    for fitting in (bias[::2], bias[:1]):
        exact = x.double() @ weight.double().T + fitting.double()
        assert ((linear16.linear(x, weight, fitting) - exact).norm() / exact.norm()).item() < 6e-3
    assert not linear16.fits(x, weight, bias[::2]) and not linear16.fits(x, weight, bias[:32].float())
    learned = bias[:32].clone().requires_grad_()
    linear16.linear(x, weight, learned).float().sum().backward()
    assert torch.equal(learned.grad, torch.full((32,), float(rows)).bfloat16())


def test_gradients_are_those_of_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).bfloat16().requires_grad_() for shape in ((16, 64), (32, 64)))
    linear16.linear(x, weight).float().square().sum().backward()
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    nn.functional.linear(*wide).square().sum().backward()
    for ours, exact in zip((x, weight), wide, strict=True):
        assert ((ours.grad - exact.grad).norm() / exact.grad.norm()).item() < 1e-2


def test_float32_and_a_cpu_with_units_go_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(16, 8), torch.randn(4, 8)
    assert torch.equal(linear16.linear(x, weight), nn.functional.linear(x, weight))
    monkeypatch.setattr(linear16, "has_units", lambda: True)
    x, weight = x.bfloat16(), weight.bfloat16()
    assert torch.equal(linear16.linear(x, weight), nn.functional.linear(x, weight))


def test_a_model_is_loaded_with_such_layers_and_scores_the_same(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = models.resolve(str(tiny_folder), Hub())
    ours = models.load(ref, torch.device("cpu"), Hub()).model
    monkeypatch.setattr(models, "has_units", lambda: True)
    plain = models.load(ref, torch.device("cpu"), Hub()).model
    assert all(type(layer) is Dense for layer in models.linears(ours).values()) and type(ours.lm_head) is Dense
    tokens = torch.randint(0, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
    first, second = (model(tokens).logits.float().log_softmax(-1) for model in (ours, plain))
    assert (first - second).abs().max() < 0.05 and torch.equal(*(p.argmax(-1)[:, :4] for p in (first, second)))
