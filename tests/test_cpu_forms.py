"""The CPU forms of the kernels: many rows read out, and what they compute on the way to the same result."""

from __future__ import annotations

import pytest
import torch

from kernels import read_out
from kernels.bench.check import relative_error, served, tolerance
from kernels.op import ops
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
