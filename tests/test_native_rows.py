"""The CPU kernel in C: every count of rows, few of them and many, exactly."""

from __future__ import annotations

import pytest
import torch

from kernels import native
from kernels.op import LowBitWeight, dequantize
from kernels.product import Case, exact_product, random_problem
from tests.poisoned import poison
from tests.test_native import needs_compiler
from tests.test_native_inputs import flavour  # noqa: F401 - a fixture


@needs_compiler
@pytest.mark.parametrize("rows", range(1, 28))
def test_every_count_of_rows_and_an_odd_shape(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    x, weight = random_problem(Case(rows, 37, 88, 4, 8, False), torch.Generator().manual_seed(rows))
    assert native.refuses(weight) == ""
    packed, x = native.pack(weight), x.bfloat16()
    y, exact = native.run(x, packed), exact_product(x, weight)
    assert y.shape == (rows, 37) and (y.double() - exact).norm() <= 4e-3 * exact.norm()


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 11, 16, 17])
def test_few_rows_are_exact_with_every_kind_of_group(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers times powers of two, whose sums float32 holds: all bits are compared. Odd numbers of outputs, and rows of inputs that end within a step."""
    poison(monkeypatch)
    generator = torch.Generator().manual_seed(rows)
    table = torch.tensor([-9.0, -7, -4, -1.5, -0.5, 0, 0.25, 0.75, 1, 2, 3, 5, 6, 8, 10, 12])
    for bits, book in ((1, None), (2, None), (2, table[::4]), (3, None), (4, None), (4, table)):
        for n, k, group in ((1, 32, 32), (37, 96, 32), (70, 192, 64), (33, 384, 128), (37, 85, 0), (16, 3, 0), (5, 16, 16), (9, 40, 8))[: 7 + (bits > 2)]:
            codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
            scale = 2.0 ** torch.randint(-2, 3, (n, k // (group or k)), generator=generator)
            zero = torch.randint(0, 2**bits, scale.shape, generator=generator).float()
            x = torch.randint(-3, 4, (rows, k), generator=generator).bfloat16()
            for weight in (LowBitWeight(codes, scale, None, bits, book), *([LowBitWeight(codes, scale, zero, bits)] if book is None else [])):
                y = native.run(x, native.pack(weight))
                assert torch.equal(y, (x.double() @ dequantize(weight).double().T).bfloat16()), (bits, n, k, group, weight.zero is None)


@needs_compiler
@pytest.mark.usefixtures("flavour")
def test_many_rows_are_exact_with_every_way_to_multiply_them() -> None:
    """Integers times powers of two again: scales before or after the sum, parts of groups, groups that fill no tile, few outputs and thousands."""
    generator = torch.Generator().manual_seed(5)
    for n, k, group, widths in ((4100, 64, 32, (4,)), (37, 1100, 0, (3, 8)), (70, 1280, 640, (4, 6)), (64, 144, 48, (2, 3, 5, 8))):
        for bits in widths:
            codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
            scale = 2.0 ** torch.randint(-2, 3, (n, k // (group or k)), generator=generator)
            zero = torch.randint(0, 2**bits, scale.shape, generator=generator).float()
            for weight in (LowBitWeight(codes, scale, None, bits), LowBitWeight(codes, scale, zero, bits)):
                packed, values = native.pack(weight), dequantize(weight).float()
                for rows in (15, 33, 70):
                    x = torch.randint(-3, 4, (rows, k), generator=generator).bfloat16()
                    assert torch.equal(native.run(x, packed), (x.float() @ values.T).bfloat16()), (bits, n, k, group, rows, weight.zero is None)


@needs_compiler
@pytest.mark.usefixtures("flavour")
def test_inputs_of_every_size_count() -> None:
    """Outliers beside small inputs in one group, rows far apart, and numbers near the ends of what bfloat16 holds."""
    for case in (Case(4, 37, 384, 4, 64, False), Case(3, 37, 512, 2, 0), Case(2, 16, 256, 8, 0)):
        x, weight = random_problem(case, torch.Generator().manual_seed(9))
        x[:, ::64] *= 1000
        x[0] *= 1e30
        x[1] *= 1e-30
        packed, exact = native.pack(weight), exact_product(x.bfloat16(), weight)
        y = native.run(x.bfloat16(), packed).double()
        assert ((y - exact).norm(dim=1) <= 4e-3 * exact.norm(dim=1)).all(), case
        small = native.run(x[:, 1:64].bfloat16(), native.pack(weight._replace(codes=weight.codes[:, 1:64], scale=weight.scale[:, :1], zero=None))).double()
        assert small[0].abs().max() > 1e25 and 0 < small[1].abs().max() < 1e-25


@needs_compiler
@pytest.mark.usefixtures("flavour")
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_a_massive_input_takes_no_bits_from_the_others(bits: int, rows: int) -> None:
    """One of 3,000 among inputs of size 1, in one row; all weights that it meets are zero, so that results show what became of the others."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 2**bits, (64, 256), generator=generator, dtype=torch.uint8)
    codes[:, 7] = 2 ** (bits - 1)
    weight = LowBitWeight(codes, torch.rand(64, 2, generator=generator) + 0.5, None, bits)
    x = torch.randn(rows, 256, generator=generator).bfloat16()
    for massive in (40.0, 3000.0):
        x[-1, 7] = massive
        y, exact = native.run(x, native.pack(weight)).double(), exact_product(x, weight)
        error = (y - exact).norm(dim=1) / exact.norm(dim=1)
        assert (error <= 2.5e-3).all(), (massive, error)
