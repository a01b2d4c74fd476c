"""What the CPU kernels in C do to inputs: rounding and turning them, and outlier columns in 16 bits; every flavour against the plain meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from explorer.methods import build
from explorer.qlinear import QuantizedLinear
from explorer.rotation import PALEY, Rotation
from kernels import native, native_round
from kernels.hadamard import Turn, sylvester, turn
from kernels.op import Activation, dequantize, ops, round_activation, split_outliers
from kernels.product import Case, exact_product, random_problem, random_weight
from kernels.round_blocks import torch_values
from kernels.round_inputs import value
from tests.poisoned import poison
from tests.test_native import needs_compiler, supported

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROUNDED = [
    *(Activation(kind, *rest) for kind in ("int8", "e4m3", "e5m2") for rest in (("token",), ("tensor",), ("tensor", 0.02))),
    Activation("e4m3", "block"), Activation("e5m2", "block"),
]  # fmt: skip
BLOCKS = [*(Activation(kind, "mx") for kind in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")), *(Activation("e2m1", "nvfp4", unit) for unit in (0.0015, 2.0**-9))]
FORMS = {name: next((form for form in ops()[name].cpu if form.name == "native"), None) for name in ("hadamard", "w8a8_int8_matmul")}


@pytest.fixture(params=list(native.FLAVOURS))
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of the flavours that this CPU runs, in force for a test; what a kernel does not write is poisoned."""
    if request.param not in supported():
        pytest.skip(f"needs a CPU with {', '.join(native.FLAVOURS[request.param])}")
    monkeypatch.setattr(native, "flavour", lambda: request.param)
    native.library.cache_clear()
    assert native.library()[1] == ""
    poison(monkeypatch)
    yield request.param
    monkeypatch.undo()
    native.library.cache_clear()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit by bit, the sign of zeros too, NaN being NaN."""
    a, b = a.float(), b.float()
    where = ~a.isnan()
    return torch.equal(where, ~b.isnan()) and torch.equal(a[where].view(torch.int32), b[where].view(torch.int32))


def inputs(m: int, k: int, dtype: torch.dtype) -> Tensor:
    """[m, k] of very different sizes down to subnormal ones, with a part of zeros, signed ones, and numbers that lie on ties."""
    generator = torch.Generator().manual_seed(m)
    x = torch.randn(m, k, generator=generator) * torch.exp2(torch.randint(-20, 15, (m, k), generator=generator).float())
    x[0, : k // 2], x[0, 0] = 0, -0.0
    x[-1] = (torch.randn(k, generator=generator) * 4).round() / 4
    x[m // 2, ::3] *= 1e-38 if dtype is not torch.float16 else 1e-6
    return x.to(dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_rounded_bit_by_bit_as_the_definition_rounds_them(flavour: str, dtype: torch.dtype) -> None:
    for m, k in ((1, 128), (7, 640), (33, 384)):
        x = inputs(m, k, dtype)
        for a in ROUNDED:
            (codes, scale), (exact, exact_scale) = native_round.rounded(x, a), round_activation(x, a)
            assert codes.dtype == exact.dtype and same(codes, exact), a
            assert scale.shape == exact_scale.shape and same(scale, exact_scale), a
        for a in BLOCKS:
            y = native_round.values(x, a)
            assert y.dtype == dtype and same(y, torch_values(x, a)), a
    for a in (a for a in ROUNDED if a.per != "block"):  # rows that no vector divides, and one number
        for shape in ((3, 37), (1, 1), (2, 1)):
            x = inputs(*shape, dtype)
            assert all(same(ours, theirs) for ours, theirs in zip(native_round.rounded(x, a), round_activation(x, a), strict=True)), (a, shape)


@needs_compiler
def test_every_tie_goes_to_the_even_number_and_every_bit_pattern_somewhere(flavour: str) -> None:
    """All numbers of bfloat16 at once, infinities and NaN among them, by a scale that leaves them as they are and one that makes ties; in blocks as well."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for given in (1.0, 0.75, 2.0**-120):
        for kind in ("e4m3", "e5m2", "int8"):
            a, rows = Activation(kind, "tensor", given), x.view(-1, 1)
            (codes, scale), (exact, exact_scale) = native_round.rounded(rows, a), round_activation(rows, a)
            finite = exact_scale.isfinite() if kind == "int8" else torch.ones_like(exact_scale, dtype=torch.bool)
            assert same(scale, exact_scale) and same(codes[finite], exact[finite]), (kind, given)
    for a in BLOCKS:
        assert same(native_round.values(x.view(-1, 256), a), torch_values(x.view(-1, 256), a)), a


@needs_compiler
def test_what_is_not_finite_stays_in_its_part(flavour: str) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = inputs(5, 256, torch.bfloat16)
        x[3, 200] = bad
        for a in ROUNDED:
            codes, scale = native_round.rounded(x, a)
            assert same(scale, round_activation(x, a)[1]), a
            expected = value(round_activation(x, a)).isfinite()
            assert torch.equal(value((codes, scale)).isfinite(), expected), a
        for a in BLOCKS:
            assert same(native_round.values(x, a), torch_values(x, a)), a


@needs_compiler
def test_rows_that_do_not_lie_one_after_the_other(flavour: str) -> None:
    wide = inputs(8, 512, torch.bfloat16)
    for x in (wide[:, 128:384], wide.T[:256].T[::2], wide[:1].expand(4, -1)):
        for a in ROUNDED:
            assert all(same(ours, theirs) for ours, theirs in zip(native_round.rounded(x, a), round_activation(x, a), strict=True)), a
        assert all(same(native_round.values(x, a), torch_values(x, a)) for a in BLOCKS)
        t = Turn(torch.ones(x.shape[1], dtype=torch.int8), *(sylvester(n).to(torch.int8) for n in (x.shape[1] // 16, 16)))
        assert torch.allclose(FORMS["hadamard"].run(x, FORMS["hadamard"].pack(t)).float(), turn(x.double(), t).float(), rtol=0.01, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("op", ["w8a8_fp8_matmul", "block_float_matmul"])
def test_a_product_rounds_its_inputs_in_the_same_call(op: str, flavour: str) -> None:
    """With few and many rows, from every dtype, broken rows apart; the same numbers as rounded before."""
    form = next(form for form in ops()[op].cpu if form.name == "native")
    for case in ops()[op].cases:
        x, weight = random_problem(case, torch.Generator().manual_seed(2))
        if form.refuses(weight):
            continue
        packed = form.pack(weight)
        for dtype in DTYPES:
            y, exact = form.run(x.to(dtype), packed), exact_product(x.to(dtype), weight)
            assert y.dtype == dtype and (y.double() - exact).norm() <= 4e-3 * exact.norm(), (case, dtype)
        shared = case.activation.per == "tensor" and not case.activation.scale
        if case.m > 1 and not shared:
            x[1] = 0
            whole, rest = form.run(x.bfloat16(), packed), [0, *range(2, case.m)]
            x[1, -1] = torch.nan
            y = form.run(x.bfloat16(), packed)
            assert y[1].isnan().all() and torch.equal(y[rest], whole[rest]), case


@needs_compiler
@pytest.mark.parametrize("m", [1, 2, 37])
def test_turned_inputs_are_those_of_the_definition(m: int, flavour: str) -> None:
    """Lengths from one channel on, all that the explorer's rotation has, and any matrix of +-1 on the left; alone and rounded in the same pass."""
    generator = torch.Generator().manual_seed(m)
    shapes = [(1, 1, 1), (1, 1, 37), (1, 2, 3), (1, 4, 1), (4, 2, 1), (2, 8, 3), (8, 8, 1), (32, 32, 1), (64, 128, 1)]
    shapes += [*((order, 2**i, 1) for i, order in enumerate(PALEY)), (3, 16, 2), (5, 1, 7), (7, 64, 1), (28, 128, 1)]
    form = FORMS["hadamard"]
    for p, q, runs in shapes:
        k = p * q * runs
        signs = torch.randint(0, 2, (k,), generator=generator, dtype=torch.int8) * 2 - 1
        left = sylvester(p) if p & (p - 1) == 0 else torch.randint(0, 2, (p, p), generator=generator) * 2 - 1
        t, x = Turn(signs, left.to(torch.int8), sylvester(q).to(torch.int8)), torch.randn(m, k, generator=generator)
        assert form.refuses(t) == ""
        for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)):
            y, exact = form.run(x.to(dtype), form.pack(t)), turn(x.to(dtype).double(), t)
            assert y.dtype == dtype and y.shape == x.shape and (y.double() - exact).norm() <= limit * exact.norm(), (p, q, runs, dtype)
        turned = form.run(x, form.pack(t))
        for kind in ("int8", "e4m3", "e5m2"):
            a = Activation(kind)
            assert all(same(ours, theirs) for ours, theirs in zip(form.run(x, form.pack(t._replace(activation=a))), round_activation(turned, a), strict=True))


@needs_compiler
def test_a_turned_row_that_is_not_finite_stays_alone_and_what_does_not_fit_is_refused(flavour: str) -> None:
    form, signs = FORMS["hadamard"], torch.ones(96, dtype=torch.int8)
    t = Turn(signs, Rotation.of(96, CPU).left, Rotation.of(96, CPU).right)
    for bad in (torch.nan, torch.inf):
        x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
        x[2, 50] = bad
        y = form.run(x.bfloat16(), form.pack(t))
        assert not y[2].isfinite().any() and y[[0, 1, 3]].isfinite().all()
    assert "Sylvester" in form.refuses(t._replace(right=-t.right)) and form.refuses(t._replace(activation=Activation("int8", "tensor")))
    packed = form.pack(t)
    assert {name: tensor.data_ptr() for name, tensor in packed.tensors.items()} == {"signs": t.signs.data_ptr(), "left": t.left.data_ptr()}


@needs_compiler
@pytest.mark.parametrize("m", [1, 2, 13, 130])
@pytest.mark.parametrize("per", ["token", "tensor"])
def test_outlier_columns_stay_in_16_bits_and_sums_are_exact(m: int, per: str, flavour: str) -> None:
    """Columns found by a threshold and named ones, none, some and all; against integer sums and the outliers' product in float64."""
    form = FORMS["w8a8_int8_matmul"]
    for n, k in ((64, 128), (37, 90), (1, 5)):
        generator = torch.Generator().manual_seed(m)
        w = random_weight(Case(m, n, k, 8, 0), generator)
        x = torch.randn(m, k, generator=generator)
        x[:, 1] *= 30
        x[0, k - 1], x[-1, 2] = 6.0, -6.0  # a magnitude that is the threshold counts
        for a in (
            Activation("int8", per, 0.0, 6.0),
            Activation("int8", per, 0.0, 1e9),
            Activation("int8", per, 0.0, 1e-9),
            Activation("int8", per, columns=(0, k - 1)),
        ):
            weight = w._replace(activation=a)
            packed = form.pack(weight)
            for dtype in DTYPES:
                given = x.to(dtype)
                rest, columns = split_outliers(given.float(), a)
                codes, scale = round_activation(rest, a)
                exact = (codes.double() @ (w.codes.double() - 128).T) * scale.double()
                exact += 0 if columns is None else given[:, columns].double() @ (w.codes.double() - 128)[:, columns].T
                exact *= w.scale.double().T
                y = form.run(given, packed)
                limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype]
                assert y.dtype == dtype and (y.double() - exact).norm() <= limit * exact.norm(), (a, n, dtype)
                if dtype is torch.float32 and columns is None:
                    assert torch.equal(y, (codes.double() @ (w.codes.double() - 128).T).float() * scale * w.scale.float().T)


@needs_compiler
def test_outliers_that_are_not_finite_break_their_row_alone(flavour: str) -> None:
    form, w = FORMS["w8a8_int8_matmul"], random_weight(Case(3, 48, 256, 8, 0, activation=Activation("int8", threshold=6.0)), torch.Generator().manual_seed(0))
    others = [0, *range(2, 20)]
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(20, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
        x[:, 9], x[1, 77] = 8.0, bad
        y, expected = form.run(x, form.pack(w)), exact_product(x[others], w)
        assert not y[1].isfinite().any()
        assert (y[others].double() - expected).norm() < 0.02 * expected.norm()  # an infinity keeps its column out of the rounding of other rows


@needs_compiler
def test_threads_share_the_rows_without_changing_a_number() -> None:
    x = torch.randn(70, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[:, 9] *= 30
    t, results = Turn(torch.ones(2048, dtype=torch.int8), *(sylvester(n).to(torch.int8) for n in (32, 64))), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        made = [
            FORMS["hadamard"].run(x, FORMS["hadamard"].pack(t)),
            *(native_round.rounded(x, a)[0] for a in ROUNDED),
            *(native_round.values(x, a) for a in BLOCKS),
        ]
        for op in ("w8a8_fp8_matmul", "block_float_matmul", "w8a8_int8_matmul"):
            for case in ops()[op].timed:
                weight = random_weight(dataclasses.replace(case, n=128, k=2048), torch.Generator().manual_seed(1))
                form = next(form for form in ops()[op].cpu if not form.refuses(weight))
                made.append(form.run(x, form.pack(weight)))
        results.append(made)
    torch.set_num_threads(before)
    assert all(same(one, three) for one, three in zip(*results, strict=True))


def test_a_turned_layer_says_what_turns_it_and_holds_nothing_more() -> None:
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))
    layer, plain = (QuantizedLinear(build("rtn", {"rotate": rotate, "group_size": 64}).quantize(weight, None), None, CPU) for rotate in (True, False))
    assert plain.turned_by == "" and layer.turned_by == f"hadamard ({'cpu' if native.library()[0] is None else 'native'})"
    rotation = {name: tensor.nbytes for name, tensor in vars(layer.rotation).items()}
    assert layer.packed_bytes() == plain.packed_bytes() | rotation
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = layer.rotation.apply(x.float()) @ dequantize(layer.source.weight()).T
    assert (layer(x).float() - exact).norm() < 6e-3 * exact.norm()


def test_without_a_compiler_torch_turns_and_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: (None, "no C compiler is here"))
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear(build("rtn", {"rotate": True}).quantize(weight, None), None, CPU)
    assert layer.turned_by == "hadamard (cpu)" and "native" not in layer.kernel
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(layer._transform(x), layer.rotation.apply(x))
    assert all(same(ours, theirs) for ours, theirs in zip(native_round.round_here(x, ROUNDED[0]), round_activation(x, ROUNDED[0]), strict=True))
