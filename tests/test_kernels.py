"""Kernels: numerics of every form on every case (Triton through its interpreter), packing, dispatch, and laws of single ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from explorer.kvcache import KiviLayer
from explorer.rotation import Rotation
from kernels import native, round_blocks, round_inputs
from kernels.bench.check import relative_error, served, tolerance, unable
from kernels.codes import assembly
from kernels.floats import FORMATS, bias, float_format, float_values
from kernels.hadamard import Turn, sylvester
from kernels.low_bit_cache import LowBitCache
from kernels.op import REFERENCE, Activation, choose, dequantize, multiply, ops, round_activation
from kernels.packing import PLANES, pack_planar, pack_table, swizzle
from kernels.product import Case, random_weight
from kernels.timing import time_call
from tests.poisoned import POISON, poison

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))]
ALL = [pytest.param(op, form, id=f"{op.name}-{form.name}") for op in ops().values() for form in op.forms()]


def weight_of(case: Case):
    return random_weight(case, torch.Generator().manual_seed(0))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def test_codes_that_nobody_wrote_are_seen(poisoned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that leave out the last row's program: its codes are no codes of its inputs."""

    class LastRowLeftOut:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return self.kernel[(grid[0] - 1, *grid[1:])]

    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for module, name, codes_of in (
        (round_inputs, "round_rows_kernel", lambda: round_inputs.round_inputs(x, "int8", "token", 0.0, None)[0]),
        (round_blocks, "round_blocks_kernel", lambda: round_blocks.fp4_codes(x, "mx", 0.0)[0]),
    ):
        whole = codes_of()
        monkeypatch.setattr(module, name, LastRowLeftOut(getattr(module, name)))
        assert torch.equal(codes_of()[:2], whole[:2]) and (codes_of()[2].view(torch.uint8) == POISON).all() and (whole[2].view(torch.uint8) != POISON).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "form"), ALL)
def test_every_case_agrees_with_float64(op, form, device: str, poisoned: None) -> None:
    if device == "cuda" and form not in op.gpu:
        pytest.skip("needs no GPU: this form is for CPUs")
    if told := unable(op, form):
        pytest.skip(told)
    cases = served(op, form)
    assert cases, f"{op.name} has no case for its {form.name} form"
    for i, case in enumerate(cases):
        interpreted = form in op.gpu and device == "cpu" and form is not REFERENCE  # where bf16 is computed as float32: every third case is enough
        for dtype in (torch.float16, torch.bfloat16)[: 1 if interpreted and i % 3 else 2] if form in op.gpu else (torch.bfloat16,):
            assert relative_error(op, form, case, dtype, torch.device(device)) <= tolerance(form, dtype), (case, dtype)


def test_all_codes_are_exact_one_by_one() -> None:
    """The identity as input reads every weight out: all codes of all widths, in the Triton form, to the last bit of fp16 products."""
    for op in (op for op in ops().values() if op.bits and not op.activation):
        formats = [(bits, "") for bits in range(op.bits[0], op.bits[1] + 1)]
        formats += [(bits, name) for name, (bits, _mantissa) in FORMATS.items() if op.bits[0] <= bits <= op.bits[1]]
        for bits, name in [*formats, *([(4, "table")] if op.name == "int4_matmul" else [])]:
            w = weight_of(Case(1, 16, 256, bits, 0, codebook=name))
            read = op.gpu[0].run(torch.eye(256), op.gpu[0].pack(w)).T
            assert torch.equal(read, dequantize(w)), (bits, name)


def run_assembly(text: str, inputs: list[int], outputs: int) -> list[int]:
    """Runs the few instructions that codes.py writes, on 32-bit words; multiply-adds on pairs of halves must be exact."""
    words = dict(zip((f"${outputs + i}" for i in range(len(inputs))), inputs, strict=True))
    kinds = {"f16x2": torch.float16, "bf16x2": torch.bfloat16}
    value = lambda name: words[name] if name in words else int(name, 0)  # noqa: E731
    halves = lambda word, kind: torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.uint16).view(kind).double()  # noqa: E731
    for line in text.strip("{ }").split(";")[1:-1]:
        name, target, *rest = line.replace(",", "").split()
        if name == "fma.rn.f16x2" or name == "fma.rn.bf16x2":
            a, b, c = (halves(value(word), kinds[name.split(".")[2]]) for word in rest)
            exact = a * b + c
            rounded = exact.to(kinds[name.split(".")[2]])
            assert torch.equal(rounded.double(), exact), "not exact"
            low, high = rounded.view(torch.uint16).tolist()
            words[target] = low | high << 16
        elif name == "prmt.b32":
            table = value(rest[0]).to_bytes(4, "little") + value(rest[1]).to_bytes(4, "little")
            picks = [value(rest[2]) >> 4 * i & 15 for i in range(4)]
            assert max(picks) < 8, "the upper bit of a selector repeats a sign"
            words[target] = int.from_bytes(bytes(table[i] for i in picks), "little")
        elif name == "and.b32":
            words[target] = value(rest[0]) & value(rest[1])
        elif name == "lop3.b32":
            assert rest[3] in ("0xea", "0xae")
            words[target] = ((value(rest[0]) ^ (0xFFFFFFFF if rest[3] == "0xae" else 0)) & value(rest[1])) | value(rest[2])
        else:
            shift = {"shr.b32": lambda w, s: w >> s, "shl.b32": lambda w, s: (w << s) & 0xFFFFFFFF, "mov.b32": lambda w, s: w}[name]
            words[target] = shift(value(rest[0]), int(rest[1]) if len(rest) > 1 else 0)
    return [words[f"${i}"] for i in range(outputs)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("bf16", [False, True])
def test_assembly_means_what_the_plain_form_does(bits: int, bf16: bool) -> None:
    """Every code in every place: four stored bytes a word, all planes, both halves of all registers."""
    planes, block = PLANES[bits], 4 * PLANES[bits]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (max(64, 2**bits), block), generator=generator, dtype=torch.uint8)
    codes[: 2**bits] = torch.arange(2**bits, dtype=torch.uint8).unsqueeze(1)
    packed = pack_planar(swizzle(codes), block, bits)
    word = lambda row: int.from_bytes(bytes(row.tolist()), "little")  # noqa: E731
    for row in range(len(codes)):
        inputs = [word(part) for part in packed["codes"][row].split(4)] + ([word(packed["high"][row])] if bits == 3 else [])
        found = torch.tensor(run_assembly(assembly(bits, bf16), inputs, 2 * planes), dtype=torch.int64).to(torch.uint32)
        values = found.view(torch.bfloat16 if bf16 else torch.float16).float()
        assert torch.equal(values, codes[row].float() - 2 ** (bits - 1))


@pytest.mark.parametrize("name", ["e2m1", "e3m2", "e4m3", "e5m2", "table"])
@pytest.mark.parametrize("bf16", [False, True])
def test_assembly_of_floats_and_tables_gives_their_values(name: str, bf16: bool) -> None:
    bits = 4 if name in ("e2m1", "table") else 8
    planes, dtype = PLANES[bits], torch.bfloat16 if bf16 else torch.float16
    table = tuple((torch.linspace(-1, 1, 16) ** 3).to(dtype).tolist()) if name == "table" else ()
    if table:
        stored, values = torch.arange(16), torch.tensor(table)
    else:  # 6-bit floats are stored with their sign in bit 7
        own, value = FORMATS[name][0], float_values(name) / (1 if bf16 else 2.0 ** (15 - bias(name)))
        patterns = torch.arange(2**own)[(value != 0) | (torch.arange(2**own) == 0)]
        size = patterns & (2 ** (own - 1) - 1)
        stored = (patterns >> (own - 1) << (bits - 1)) | size
        values = torch.zeros(2**bits).index_put((stored,), value[patterns])
    codes = stored.repeat(4 * planes)[torch.randperm(len(stored) * 4 * planes, generator=torch.Generator().manual_seed(0))].view(-1, 4 * planes).to(torch.uint8)
    packed = (pack_table(codes, 4 * planes) if table else pack_planar(swizzle(codes), 4 * planes, bits))["codes"]
    for row in range(len(codes)):
        word = int.from_bytes(bytes(packed[row].tolist()), "little")
        found = torch.tensor(run_assembly(assembly(bits, bf16, "" if table else name, table), [word], 2 * planes), dtype=torch.int64).to(torch.uint32)
        assert torch.equal(found.view(dtype).float(), values[codes[row].long()])


def test_packed_bytes_are_half_or_one_a_code() -> None:
    w = weight_of(Case(1, 64, 256, 4, 64))
    for bits in (2, 3):
        tensors = ops()["int4_matmul"].gpu[0].pack(weight_of(Case(1, 64, 256, bits, 64))).tensors
        assert sum(tensors[name].nbytes for name in ("codes", "high") if name in tensors) * 8 == bits * 64 * 256
    assert all(form.pack(w).tensors["codes"].nbytes == 64 * 128 for form in (ops()["int4_matmul"].gpu[0], ops()["int4_matmul"].cpu[0]))
    w = weight_of(Case(1, 64, 256, 8, 0))
    assert all(form.pack(w).tensors["codes"].nbytes == 64 * 256 for form in (ops()["int8_matmul"].gpu[0], ops()["int8_matmul"].cpu[0]))


def test_dispatch_names_what_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel a Report names: on a GPU every format of every method has one."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def name(case: Case, device: torch.device) -> str:
        op, form, _ = choose(weight_of(case), device)
        return f"{op} ({form.name})"

    nf4, mxfp4, nvfp4 = Case(1, 64, 256, 4, 64, codebook="table"), Case(1, 64, 256, 4, 32, codebook="e2m1"), Case(1, 64, 256, 4, 16, codebook="e2m1")
    q6k, mxfp8, fp8 = Case(1, 64, 256, 6, 16), Case(1, 64, 256, 8, 32, codebook="e5m2"), Case(1, 64, 256, 8, 0, activation=Activation("e5m2"))
    every = (nf4, mxfp4, nvfp4, q6k, mxfp8, fp8, Case(1, 64, 256, 3, 64), Case(1, 64, 256, 6, 0))
    if native.library()[0] is not None:
        assert {name(case, cpu).partition(" ")[2] for case in every} == {"(native)"}
    monkeypatch.setattr(native, "library", lambda: (None, "it is not here"))
    assert name(Case(1, 64, 256, 3, 64), cpu) == name(Case(1, 64, 256, 1, 0, codebook="table"), cpu) == "int4_matmul (cpu)"
    assert name(Case(1, 64, 256, 6, 0), cpu) == "int8_matmul (cpu)"
    assert name(nf4, cpu) == name(mxfp4, cpu) == name(nvfp4, cpu) == "int4_matmul (summed 4-bit codes)" and name(q6k, cpu) == "int8_matmul (summed 4-bit codes)"
    assert name(mxfp8, cpu) == "int8_matmul (16-bit copy)" and name(fp8, cpu) == "w8a8_fp8_matmul (16-bit copy)"
    assert {name(case, cuda) for case in (nf4, mxfp4, nvfp4)} == {"int4_matmul (triton)"} and name(q6k, cuda) == name(mxfp8, cuda) == "int8_matmul (triton)"
    assert name(fp8, cuda) == "w8a8_fp8_matmul (triton)"
    odd = choose(weight_of(Case(1, 64, 240, 8, 48, activation=Activation("int8"))), cuda)
    assert odd[1] is REFERENCE and "groups" in odd[2] and "reference" not in odd[0]


def test_fp4_units_multiply_what_is_e2m1_on_both_sides_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = {4: "summed 4-bit codes", 8: "16-bit copy"} if native.library()[0] is None else {4: "native", 8: "native"}
    for case in ops()["block_float_matmul"].cases:
        units = "FP4" if case.codebook == case.activation.kind == "e2m1" else "16-bit"
        for capability, runs in ((100, units), (120, units), (90, "16-bit")):
            monkeypatch.setattr("kernels.op.compute_capability", lambda device, able=capability: able if device.type == "cuda" else 0)
            op, form, why = choose(weight_of(case), torch.device("cuda"))
            assert (op, form.name, why) == ("block_float_matmul", f"triton {runs}", "")
        if case.n % 16 == 0 and case.bits in on_cpu:
            op, form, _ = choose(weight_of(case), torch.device("cpu"))
            assert (op, form.name) == ("block_float_matmul", on_cpu[case.bits])


@pytest.mark.parametrize("name", FORMATS)
def test_small_floats_have_the_values_of_their_definition(name: str) -> None:
    bits, mantissa = FORMATS[name]
    values, one = float_values(name), (2 ** (bits - 1 - mantissa - 1) - 1) << mantissa  # the pattern of 1.0
    assert values[one] == 1 and values[one + 1] == 1 + 2.0**-mantissa and values[1] == 2.0 ** (1 - bias(name) - mantissa)
    assert torch.equal(values[2 ** (bits - 1) :], -values[: 2 ** (bits - 1)]) and float_format(values) == name
    assert float_format(values.flip(0)) == ""


def test_scales_are_kept_in_the_narrowest_exact_format() -> None:
    pack = ops()["int4_matmul"].gpu[0].pack
    kinds = {"e8m0": torch.uint8, "e4m3": torch.uint8, "nested": torch.uint8, "": torch.bfloat16, "float32": torch.float32}
    for kind, dtype in kinds.items():
        packed = pack(weight_of(Case(1, 48, 256, 4, 64, codebook="table", scale=kind)))
        assert packed.tensors["scale"].dtype == dtype and packed.meta[0].scale_kind == (kind if dtype == torch.uint8 else "number")


@pytest.mark.parametrize("op", ops().values(), ids=lambda op: op.name)
def test_every_op_can_be_traced_without_running(op) -> None:
    """Shapes and dtypes of a trace are those of a run: what compiling a model and capturing a graph need."""
    form = op.gpu[0]
    x, operand = op.problem(served(op, form)[0], torch.Generator().manual_seed(0))
    packed = form.pack(operand)
    ran = form.run(x.half(), packed)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        traced = form.run(mode.from_tensor(x.half()), packed)
    for real, fake in zip(*(r if isinstance(r, tuple) else (r,) for r in (ran, traced)), strict=True):
        assert real.shape == fake.shape and real.dtype == fake.dtype


def test_hadamard_is_the_rotation_of_the_explorer_and_its_own_inverse() -> None:
    form = ops()["hadamard"].gpu[0]
    for width in (48, 64, 192, 896):
        rotation = Rotation.of(width, torch.device("cpu"))
        x = torch.randn(2, width, generator=torch.Generator().manual_seed(width))
        turned = Turn(rotation.signs, rotation.left, rotation.right)
        assert not form.refuses(turned)
        assert torch.allclose(form.run(x, form.pack(turned)), rotation.apply(x), atol=1e-5)
    for p, q in ((8, 8), (16, 32)):
        matrix = sylvester(p).to(torch.int8), sylvester(q).to(torch.int8)
        packed = form.pack(Turn(torch.ones(p * q, dtype=torch.int8), *matrix))
        x = torch.randn(3, p * q, generator=torch.Generator().manual_seed(p))
        assert torch.allclose(form.run(form.run(x, packed), packed), x, atol=1e-5)
    assert "registers" in form.refuses(Turn(torch.ones(65536), sylvester(256), sylvester(256)))


def test_fused_rounding_is_rotation_then_rounding() -> None:
    form, case = ops()["hadamard"].gpu[0], ops()["hadamard"].cases
    for kind in ("int8", "e4m3"):
        x, turned = ops()["hadamard"].problem(next(c for c in case if c.kind == kind), torch.Generator().manual_seed(0))
        codes, scale = form.run(x, form.pack(turned))
        plain = form.run(x, form.pack(turned._replace(activation=None)))
        expected, expected_scale = round_activation(plain, turned.activation)
        assert torch.equal(scale, expected_scale) and codes.dtype == expected.dtype
        assert (codes.float() != expected.float()).float().mean() < 0.01  # a value on the edge of a step may fall either way


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_attention_reads_the_cache_as_the_explorer_stores_it(bits: int) -> None:
    layer, generator = KiviLayer(bits), torch.Generator().manual_seed(bits)
    for length in (120, 1, 9):
        keys, values = layer.update(*(torch.randn(2, 2, length, 64, generator=generator).half() for _ in range(2)))
    join = lambda chunks, name: torch.cat([getattr(chunk, name) for chunk in chunks], 2)  # noqa: E731
    k, v = layer.old_keys, layer.old_values
    key = (join(k, "codes"), join(k, "scale").squeeze(3), join(k, "low").squeeze(3))
    value = (join(v, "codes"), join(v, "scale").squeeze(4), join(v, "low").squeeze(4))
    cache = LowBitCache(*key, *value, layer.keys, layer.values, bits)
    q = torch.randn(2, 8, 64, generator=generator).half()
    expected = torch.nn.functional.scaled_dot_product_attention(q.float().unsqueeze(2), keys.float(), values.float(), enable_gqa=True).squeeze(2)
    for form in ops()["kv_attention"].forms():
        kept = cache if form.name != "native" else LowBitCache(*(t.float() if t.is_floating_point() else t for t in cache.tensors()), bits)
        if form.refuses(kept) and form.name == "native":
            continue
        found = form.run(q, form.pack(kept)).float()
        assert (found - expected).norm() / expected.norm() < (5e-3 if form.name == "torch" else 1e-3)


def test_integer_products_are_exact_sums() -> None:
    """Inputs that are their own codes and scales of one: every form gives the int32 sums to the last bit, also where oneDNN has no primitive."""
    op, generator = ops()["w8a8_int8_matmul"], torch.Generator().manual_seed(0)
    weight = weight_of(Case(1, 48, 1024, 8, 0, activation=Activation("int8", "tensor", 1.0)))._replace(scale=torch.ones(48, 1))
    x = torch.randint(-127, 128, (5, 1024), generator=generator).float()
    exact = x.double() @ dequantize(weight).double().T
    for form in (form for form in op.forms() if form is not REFERENCE and not form.refuses(weight)):
        assert torch.equal(form.run(x, form.pack(weight)).double(), exact), form.name


def test_static_outlier_columns_are_those_the_threshold_would_find() -> None:
    """With the columns named, int8 with outliers gives the same without looking at the data."""
    case = Case(4, 48, 256, 8, 0, activation=Activation("int8", threshold=4.0))
    weight = weight_of(case)
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    x[:, [5, 99]] *= 100
    named = weight._replace(activation=Activation("int8", columns=(5, 99)))
    for form in (form for form in ops()["w8a8_int8_matmul"].forms() if not form.refuses(named) and form is not REFERENCE):
        assert torch.allclose(form.run(x, form.pack(named)), multiply(x, weight), rtol=1e-3, atol=1e-2), form.name


def test_timing_is_ordered() -> None:
    timing = time_call([lambda: torch.ones(1000).sum()] * 3, torch.device("cpu"), samples=10)
    assert 0 < timing.p20 <= timing.median <= timing.p80 and timing.n == 10
