"""The CPU kernel in C: every flavour against the plain meaning, what it refuses, how it is built, and what it does without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from explorer.closure import code_version
from kernels import native
from kernels.floats import float_values
from kernels.native_round import CODES, rounding
from kernels.op import Activation, LowBitWeight, choose, dequantize, ops, round_activation
from kernels.product import Case, exact_product, random_problem
from tests.poisoned import poison
from tests.threads import give_back, share_nothing

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
needs_compiler = pytest.mark.skipif(not native.flavour() or not shutil.which("gcc"), reason="needs gcc on x86 with AVX2")


def supported() -> list[str]:
    """The flavours that this CPU runs: the best one and those after it."""
    names = list(native.FLAVOURS)
    return names[names.index(native.flavour()) :] if native.flavour() else []


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A monkeypatch after which the library is looked for anew."""
    for cached in (native.flavour, native.library, native.described):
        cached.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cached in (native.flavour, native.library, native.described):
        cached.cache_clear()


def found() -> list[tuple[str, Case]]:
    """(op, case) of all products that the form is offered."""
    return [(op.name, case) for op in ops().values() if op.bits for form in op.cpu if form.name == "native" for case in op.cases]


@needs_compiler
@pytest.mark.parametrize("name", list(native.FLAVOURS))
def test_every_flavour_means_what_the_reference_means(name: str, fresh: pytest.MonkeyPatch) -> None:
    if name not in supported():
        pytest.skip(f"needs a CPU with {', '.join(native.FLAVOURS[name])}")
    fresh.setattr(native, "flavour", lambda: name)
    assert native.library()[1] == ""
    served, rows = 0, set()
    for op, case in found():
        x, weight = random_problem(case, torch.Generator().manual_seed(1))
        form = next(form for form in ops()[op].cpu if form.name == "native")
        if form.refuses(weight):
            assert (case.codebook, case.bits) == ("table", 8), case
            continue
        y, exact = form.run(x.bfloat16(), form.pack(weight)).double(), ops()[op].reference(x.bfloat16(), weight)
        assert (y - exact).norm() <= 4e-3 * exact.norm(), case
        served, rows = served + 1, rows | {case.m}
    assert served > 150 and {1, 5, 33, 130, 300} <= rows


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 13])
def test_few_rows_of_a_table_that_bfloat16_does_not_hold(rows: int) -> None:
    x, weight = random_problem(Case(rows, 37, 192, 4, 64), torch.Generator().manual_seed(rows))
    weight = weight._replace(codebook=torch.randn(16, generator=torch.Generator().manual_seed(7)))
    if native.refuses(weight):
        pytest.skip(f"needs a CPU without bfloat16 products: {native.refuses(weight)}")
    y, exact = native.run(x.bfloat16(), native.pack(weight)), exact_product(x.bfloat16(), weight)
    assert native.narrowed(weight.codebook)[1] > native.EXACT and (y.double() - exact).norm() <= 4e-3 * exact.norm()


@needs_compiler
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_every_number_of_a_float8_is_exact_at_every_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subnormal ones too; products with parts of the unit matrix, of one row and of many."""
    poison(monkeypatch)
    book, k = float_values(name), 8
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[book != 0]
    weight = LowBitWeight((codes[:, None].int() + torch.zeros(k, dtype=torch.int32)).to(torch.uint8), torch.full((len(codes), 1), 2.0), None, 8, book)
    packed = native.pack(weight)
    assert packed.meta[4] == native.FLOAT8 and (book[codes.long()].abs() < 2.0 ** (-6 if name == "e4m3" else -14)).sum() == (14 if name == "e4m3" else 6)
    for rows in (1, 2, 3, 4, 64):
        x = torch.eye(k).repeat(8, 1)
        for part in x.split(rows):
            assert torch.equal(native.run(part.bfloat16(), packed), (part @ dequantize(weight).T).bfloat16()), rows


@needs_compiler
def test_infinities_and_nan_are_kept_in_their_row() -> None:
    x, weight = random_problem(Case(3, 64, 128, 4, 32), torch.Generator().manual_seed(0))
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    y = native.run(x.bfloat16(), native.pack(weight))
    assert y[0].isfinite().all() and y[1].isnan().all() and not y[2].isfinite().any()


@needs_compiler
def test_narrow_codes_stay_narrow() -> None:
    """Bits a weight of codes alone, in whole groups of 16 and not, and of a row that no step divides."""

    def kept(bits: int, k: int = 1024, group: int = 64, codebook: str = "") -> float:
        weight = weight_of(Case(1, 256, k, bits, group, codebook=codebook))
        return native.pack(weight).tensors["codes"].nbytes * 8 / weight.codes.numel()

    assert [kept(bits) for bits in range(1, 9)] == [2, 2, 3, 4, 5, 6, 8, 8]
    assert [kept(bits, group=16) for bits in (3, 5, 6)] == [3, 5, 6] and kept(6, group=32, codebook="e2m3") == 6
    assert [kept(bits, group=8) for bits in (3, 5, 6)] == [4, 8, 8], "a group of 8 is half a step"
    assert [kept(bits, k=40, group=0) * 40 / 48 for bits in (3, 5, 6)] == [3, 5, 6]


@needs_compiler
@pytest.mark.parametrize("name", list(native.FLAVOURS))
def test_every_code_at_every_place_has_its_exact_value(name: str, fresh: pytest.MonkeyPatch) -> None:
    """Products with the unit matrix: one output is one weight. Every code at every place of a step, odd shapes, all kinds of groups, zeros."""
    if name not in supported():
        pytest.skip(f"needs a CPU with {', '.join(native.FLAVOURS[name])}")
    fresh.setattr(native, "flavour", lambda: name)
    poison(fresh)
    tables = {3: [torch.tensor([-8.0, -3.5, -1, -0.25, 0, 0.5, 2, 9])], 6: [float_values("e2m3"), float_values("e3m2")]}
    for bits, group, table in ((b, g, t) for b in range(1, 9) for g in (8, 16, 32, 48, 0)[b < 3 :] for t in (None, *tables.get(b, []))):
        k, n = {0: 85, 48: 96}.get(group, 64), 2**bits + 5
        codes = (torch.arange(n)[:, None] + torch.arange(k)).remainder(2**bits).to(torch.uint8)
        scale = 2.0 ** torch.arange(n * k // (group or k)).remainder(7).view(n, -1)
        zero = None if table is not None or group == 32 else torch.arange(scale.numel()).remainder(2**bits).view(scale.shape).float()
        weight = LowBitWeight(codes, scale, zero, bits, table)
        assert native.refuses(weight) == ""
        for x in (torch.eye(k), torch.eye(k)[k // 2 :][:3]):
            y = native.run(x.bfloat16(), native.pack(weight))
            assert torch.equal(y, (x @ dequantize(weight).T).bfloat16()), (bits, group, table)


@needs_compiler
def test_threads_do_not_share_their_packed_inputs() -> None:
    x, weight = random_problem(Case(48, 256, 512, 4, 64, False), torch.Generator().manual_seed(0))
    packed, x = native.pack(weight), x.bfloat16()
    share_nothing([partial(native.run, x * i, packed) for i in range(4)])


@needs_compiler
def test_a_compiled_model_holds_it_as_an_operator() -> None:
    x, weight = random_problem(Case(5, 64, 128, 4, 32), torch.Generator().manual_seed(0))
    packed, x = native.pack(weight), x.bfloat16()
    compiled = torch.compile(lambda x: native.run(x, packed) * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), native.run(x, packed) * 2)


def test_tables_are_rounded_to_bfloat16_by_less_than_a_result_is() -> None:
    from explorer.methods.nf4 import NF4
    from kernels.floats import float_values

    rounded, error, factor = native.narrowed(torch.as_tensor(NF4))
    assert torch.equal(rounded, rounded.bfloat16().float()) and 0 < error < 8e-4 and 1 < factor < 2
    assert native.narrowed(float_values("e2m1"))[1] == 0
    assert native.narrowed(torch.randn(16, generator=torch.Generator().manual_seed(0)))[1] < 3e-3


def weight_of(case: Case) -> LowBitWeight:
    return random_problem(case, torch.Generator().manual_seed(0))[1]


def test_without_a_compiler_torch_serves_and_the_reason_is_said(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(native, "FOLDER", tmp_path)
    (tmp_path / "native.c").write_text("int nothing;")
    fresh.setattr(native.shutil, "which", lambda name: None)
    weight = weight_of(Case(1, 64, 256, 4, 64))
    assert native.refuses(weight) and (not native.flavour() or "install gcc" in native.refuses(weight))
    op, form, _ = choose(weight, CPU)
    assert (op, form.name) == ("int4_matmul", "cpu")


@needs_compiler
def test_a_source_that_does_not_compile_is_a_sentence_and_leaves_nothing(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(native, "FOLDER", tmp_path)
    (tmp_path / "native.c").write_text("no C at all")
    assert "C compiler failed" in native.refuses(weight_of(Case(1, 64, 256, 4, 64)))
    assert not list((tmp_path / "__pycache__").iterdir())


@needs_compiler
def test_it_is_compiled_once(fresh: pytest.MonkeyPatch) -> None:
    path = native.built(native.flavour())
    fresh.setattr(native.subprocess, "run", lambda *args, **kwargs: pytest.fail("compiled again"))
    assert native.built(native.flavour()) == path


def test_another_cpu_is_offered_none(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(native.platform, "machine", lambda: "aarch64")
    assert native.flavour() == "" and "no AVX2" in native.refuses(weight_of(Case(1, 64, 256, 4, 64)))


@pytest.mark.parametrize(
    "name", ["native.c", "native_int8.c", "native_round.c", "native_hadamard.c", "native_attention.c", "native_cache.h", "native.h", "native_few.h"]
)
def test_the_source_in_c_is_part_of_what_a_result_depends_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from explorer import closure

    def version() -> str:
        closure.code_version.cache_clear()
        closure._read.cache_clear()
        return code_version("kernels.native")

    before, read = version(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b" " if path.name == name else b""))
    assert version() != before
    monkeypatch.undo()
    assert version() == before


@needs_compiler
@pytest.mark.parametrize("m", [1, 2, 5, 16, 130])
def test_int8_products_of_extreme_codes_are_exact(m: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for n, k in ((64, 64), (37, 80), (21, 30)):
        x, codes = (torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 255 for shape in ((m, k), (n, k)))
        x[0], codes[0], codes[1] = 255, 255, 0  # all of one sign: the largest sums
        rounded = (x.to(torch.int16) - 128).clamp(min=-127).to(torch.int8)
        sums = native.int8_product(rounded, native.int8_pack(codes, torch.ones(n)))
        assert torch.equal(sums.double(), rounded.double() @ (codes.double() - 128).T)


@needs_compiler
def test_inputs_are_rounded_as_the_definition_rounds_them() -> None:
    """Codes are compared through products with the unit matrix: one output is one code times its scale."""
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[3], x[4, 5], x[6] = 0, 40.0, x[6] * 1e-30
    unit = native.int8_pack((torch.eye(96) + 128).to(torch.uint8), torch.ones(96))
    for activation in (Activation("int8"), Activation("int8", "tensor", 0.02), Activation("int8", "tensor")):
        codes, scale = round_activation(x, activation)
        for given in (x, x.float()):
            y = native.int8_product(given, unit, rounding(activation, 96, CODES))
            assert torch.equal(y, (codes.float() * scale).to(given.dtype)) and y.dtype is given.dtype
    x[1, 7], x[2, 9] = torch.nan, -torch.inf
    y = native.int8_product(x, unit, rounding(Activation("int8"), 96, CODES))
    assert y[1].isnan().all() and y[2].isnan().all() and y[[0, *range(3, 40)]].isfinite().all()


def test_a_thread_gives_its_memory_back() -> None:
    if native.library()[0] is None:
        pytest.skip("needs the compiled kernel")
    x, weight = random_problem(Case(1022, 16, 4096, 4, 64), torch.Generator().manual_seed(0))
    give_back(partial(native.run, x.bfloat16(), native.pack(weight)))


def test_inputs_that_do_not_fit_are_refused() -> None:
    if native.library()[0] is None:
        pytest.skip("needs the compiled kernel")
    packed = native.pack(random_problem(Case(1, 16, 128, 4, 32), torch.Generator().manual_seed(0))[1])
    with pytest.raises(RuntimeError, match="64 channels do not fit a weight of 128"):
        native.run(torch.ones(1, 64, dtype=torch.bfloat16), packed)


@needs_compiler
def test_whoever_needs_the_library_first_builds_it_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of this process and another process; the compiler is called for one source and the link."""
    count = tmp_path / "count"
    compiler = tmp_path / "bin" / "gcc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\necho one >> {count}\nsleep 0.3\nexec {shutil.which("gcc")} "$@"\n')
    compiler.chmod(0o755)
    (tmp_path / "native.c").write_text("int one(void) { return 1; }\n")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    code = f"from pathlib import Path; from kernels import native; native.FOLDER = Path({str(tmp_path)!r}); print(native.built('avx2'))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other, ThreadPoolExecutor(4) as pool:
        while not count.exists() and other.poll() is None:  # until the other one has begun
            time.sleep(0.01)
        paths = {*map(str, pool.map(native.built, ["avx2"] * 4)), other.communicate()[0].strip()}
    assert len(paths) == 1 and len(count.read_text().split()) == 2
    assert [str(file) for file in (tmp_path / "__pycache__").iterdir()] == [*paths]
