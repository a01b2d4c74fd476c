"""The CPU forms of the kernels: many rows read out, and what they compute on the way to the same result."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from explorer.methods import build
from explorer.qlinear import QuantizedLinear
from kernels import native, read_out, w8a8_int8_matmul
from kernels.bench.check import relative_error, served, tolerance, unable
from kernels.op import REFERENCE, Activation, LowBitWeight, choose, ops
from kernels.product import Case, random_weight

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["int4_matmul", "int8_matmul"])
def test_many_rows_read_out_mean_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case by either way within the same tolerance; the form says which way many rows go."""
    if not read_out.readable():
        pytest.skip("this CPU's 4-bit layout is not the one that is read out")
    monkeypatch.setattr(read_out, "crossing", lambda n, k, parts=1: 1)
    op = ops()[name]
    for form in (form for form in op.cpu if form.crossing):
        for case in served(op, form)[::2]:
            assert relative_error(op, form, case, torch.bfloat16, CPU) <= tolerance(form, torch.bfloat16), case
        packed = form.pack(op.problem(served(op, form)[0], torch.Generator())[1])
        assert form.runs(packed, 1) == form.many and form.many != form.name


def test_a_layout_that_is_not_as_assumed_is_never_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    form = next(form for form in ops()["int4_matmul"].cpu if form.name == "cpu")
    w = random_weight(Case(1, 64, 256, 4, 64), torch.Generator().manual_seed(0))
    x = torch.randn(9, 256).bfloat16()
    expected = form.run(x, form.pack(w))
    monkeypatch.setattr(read_out, "crossing", lambda n, k, parts=1: 1)
    monkeypatch.setattr(read_out, "readable", lambda: False)
    assert form.runs(form.pack(w), 9) == form.name
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


@pytest.mark.parametrize("form", [form for form in ops()["w8a8_int8_matmul"].cpu if form is not REFERENCE], ids=lambda form: form.name)
def test_extreme_codes_come_out_as_int32_sums(form) -> None:
    """The largest codes of either sign, few and many rows: what an addition in 16 bits would cut off. Dynamic, static and rounded beforehand."""
    if told := unable(ops()["w8a8_int8_matmul"], form):
        pytest.skip(told)
    generator, scale = torch.Generator().manual_seed(0), torch.ones(1, 1)
    for m, n, k in ((1, 64, 64), (2, 37, 80), (17, 48, 1024), (256, 64, 384)):
        signs, codes = (torch.randint(0, 2, size, generator=generator) for size in ((m, k), (n, k)))
        signs[-1], codes[0], codes[1] = 1, 1, 0
        weight = LowBitWeight(codes.to(torch.uint8) * 255, torch.ones(n, 1), None, 8, None, Activation("int8"))
        x, exact = 254.0 * signs - 127, (254 * signs - 127) @ (255 * codes - 128).T
        for activation in (Activation("int8"), Activation("int8", "tensor"), Activation("int8", "tensor", 1.0), Activation("int8", columns=(3, 9))):
            packed = form.pack(weight._replace(activation=activation))
            assert torch.equal(form.run(x, packed).long(), exact), (activation, m)
        assert torch.equal(form.rounded(x, x.to(torch.int8), scale.expand(m, 1), form.pack(weight)).long(), exact)


def test_a_product_that_saturates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without VNNI: pairs of products added in 16 bits. The form that keeps signs apart takes its place, else torch's own product."""
    weight = random_weight(Case(1, 48, 256, 8, 0, activation=Activation("int8")), torch.Generator().manual_seed(0))
    monkeypatch.setattr(native, "library", lambda: (None, "it is not here"))

    def pairs(inputs, scale, zero, blocked, *rest: object):
        codes = blocked.to_dense().double()
        each = (inputs.double().unflatten(1, (-1, 2)).unsqueeze(-1) * codes.unflatten(0, (-1, 2))).sum(2).clamp(-32768, 32767)
        return (each.sum(1) - zero * codes.sum(0)).float()

    name, forms = "qlinear_pointwise", ops()["w8a8_int8_matmul"].cpu
    for product, chosen in ((pairs, "oneDNN by sign"), (lambda *args: 2 * pairs(*args), "cpu")):
        w8a8_int8_matmul.exact.cache_clear()
        monkeypatch.setattr(torch.ops.onednn, name, product)
        assert choose(weight, torch.device("cpu"))[1].name == chosen
        assert "in 16 bits and saturates" in next(form for form in forms if form.name == "oneDNN").refuses(weight)
    monkeypatch.undo()
    w8a8_int8_matmul.exact.cache_clear()


def test_products_without_a_primitive_take_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(Case(1, 48, 256, 8, 0, activation=Activation("int8")), torch.Generator().manual_seed(0))
    forms = [form for form in ops()["w8a8_int8_matmul"].cpu if form.name.startswith("oneDNN") and not form.refuses(weight)]
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    expected = [form.run(x, form.pack(weight)) for form in forms]

    def none(*args: object) -> None:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", none)
    assert forms and all(torch.equal(form.run(x, form.pack(weight)), same) for form, same in zip(forms, expected, strict=True))


@pytest.mark.parametrize("op", [op for op in ops().values() if op.bits], ids=lambda op: op.name)
def test_an_empty_batch_gives_an_empty_result(op) -> None:
    """Every CPU form of every product, however inputs are rounded."""
    seen = set()
    for case in op.cases:
        weight = random_weight(case, torch.Generator().manual_seed(0))
        if (key := (case.bits, case.codebook, case.activation, case.scale)) in seen:
            continue
        seen.add(key)
        for form in op.cpu:
            if not form.refuses(weight):
                y = form.run(torch.empty(0, case.k, dtype=torch.bfloat16), form.pack(weight))
                assert y.shape == (0, case.n) and y.dtype is torch.bfloat16, (form.name, case)
    assert len(seen) > 3


@pytest.mark.parametrize("a", [Activation("int8"), Activation("int8", "tensor"), Activation("e4m3", "tensor", 0.02), Activation("e5m2", "block")], ids=str)
def test_an_empty_batch_is_rounded_to_nothing(a: Activation) -> None:
    for form in ops()["round_inputs"].forms():
        if not form.refuses(a):
            codes, scale = form.run(torch.empty(0, 256), form.pack(a))
            assert codes.shape == (0, 256) and scale.numel() == scale.shape[0] * scale.shape[1], form.name


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("dynamic_int8", {"activation": "tensor"}),
        ("dynamic_int8", {"rotate": True}),
        ("llm_int8", {}),
        ("fp8", {}),
        ("rtn", {"rotate": True}),
        ("mxfp", {"activation": "block"}),
    ],
)
def test_so_does_a_layer(method: str, params: dict) -> None:
    layer = QuantizedLinear(build(method, params).quantize(torch.randn(48, 256, generator=torch.Generator().manual_seed(0)), None), None, CPU)
    assert layer(torch.empty(0, 256).bfloat16()).shape == (0, 48) and layer(torch.empty(2, 0, 256).bfloat16()).shape == (2, 0, 48)
