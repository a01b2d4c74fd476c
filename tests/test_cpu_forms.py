"""The CPU forms of the kernels: many rows read out, and what they compute on the way to the same result."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from explorer.methods import build
from explorer.qlinear import QuantizedLinear
from kernels import read_out
from kernels.bench.check import relative_error, served, tolerance
from kernels.op import choose, ops
from kernels.product import Case, random_weight

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["int4_matmul", "int8_matmul"])
def test_many_rows_read_out_mean_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case by either way within the same tolerance; the form says which way many rows go."""
    assert read_out.readable()
    monkeypatch.setattr(read_out, "crossing", lambda n, k, parts=1: 1)
    op = ops()[name]
    for form in (form for form in op.cpu if form.crossing):
        for case in served(op, form)[::2]:
            assert relative_error(op, form, case, torch.bfloat16, CPU) <= tolerance(form, torch.bfloat16), case
        packed = form.pack(op.problem(served(op, form)[0], torch.Generator())[1])
        assert form.runs(packed, 1) == form.many and form.many != form.name


def test_a_layout_that_is_not_as_assumed_is_never_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    form, w = ops()["int4_matmul"].cpu[0], random_weight(Case(1, 64, 256, 4, 64), torch.Generator().manual_seed(0))
    x = torch.randn(9, 256).bfloat16()
    expected = form.run(x, form.pack(w))
    monkeypatch.setattr(read_out, "crossing", lambda n, k, parts=1: 1)
    monkeypatch.setattr(read_out, "readable", lambda: False)
    assert torch.equal(form.run(x, form.pack(w)), expected)


@pytest.mark.parametrize("which", ["cpu", "triton"])
def test_turning_and_rounding_in_one_pass_is_turning_then_rounding(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated W8A8 layer takes codes and scales from the Hadamard op, by either form of it (the Triton ones in their interpreter)."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 192, generator=generator), torch.randn(5, 192, generator=generator)
    x[:, 7] *= 40
    if which == "triton":
        for name in ("hadamard", "w8a8_int8_matmul"):
            monkeypatch.setitem(ops(), name, dataclasses.replace(ops()[name], cpu=ops()[name].gpu))
    plain, turned = (QuantizedLinear(build("dynamic_int8", {"rotate": rotate}).quantize(weight, None), None, CPU) for rotate in (False, True))
    op, form, _ = choose(turned.source.weight(), CPU)
    assert turned.kernel == f"{op} ({form.name})" and turned._run.func.__name__ == "_turned_and_rounded"
    apart = form.run(turned.rotation.apply(x), form.pack(turned.source.weight()))
    assert (turned.rows(x) - apart).norm() < 2e-3 * apart.norm()
    exact = x @ weight.T
    assert (turned.rows(x) - exact).norm() < 0.5 * (plain.rows(x) - exact).norm()
