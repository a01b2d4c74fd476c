"""Kernels: numerics of every form on every case (Triton through its interpreter), packing, dispatch, and the machine code for three GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.__main__ import main, relative_error, tolerance
from kernels.op import REFERENCE, Case, choose, dequantize, ops, random_weight
from kernels.packing import pack_planar, unpack_planar
from kernels.timing import time_call

ROOT = Path(__file__).parent.parent
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"))]
ALL = [pytest.param(op, form, id=f"{op.name}-{form.name}") for op in ops().values() for form in op.forms()]
# sm_80, sm_90 and sm_120: shared memory one block may use, bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}


def weight_of(case: Case):
    return random_weight(case, torch.Generator().manual_seed(0))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory holds NaN, so that an output nobody wrote is seen."""
    empty = torch.empty

    def nan_empty(*size, **options):
        made = empty(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", nan_empty)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "form"), ALL)
def test_every_case_agrees_with_float64(op, form, device: str, poisoned: None) -> None:
    if device == "cuda" and form.name == "cpu":
        pytest.skip("needs no GPU: this form is for CPUs")
    served = [case for case in op.cases if not form.refuses(weight_of(case))]
    assert served, f"{op.name} has no case for its {form.name} form"
    for case in served:
        for dtype in (torch.bfloat16,) if form.name == "cpu" else (torch.float16, torch.bfloat16):
            assert relative_error(op, form, case, dtype, torch.device(device)) <= tolerance(form, dtype), (case, dtype)


def test_all_codes_are_exact_one_by_one() -> None:
    """The identity as input reads every weight out: all codes of all widths, in the Triton form, to the last bit of fp16 products."""
    for op in (op for op in ops().values() if not op.activation):
        for bits in range(op.bits[0], op.bits[1] + 1):
            w = weight_of(Case(1, 16, 256, bits, 0))
            read = op.triton.run(torch.eye(256), op.triton.pack(w)).T
            assert torch.equal(read, dequantize(w))


def test_planar_packing_round_trips_and_has_the_documented_layout() -> None:
    codes = torch.randint(0, 16, (5, 192), dtype=torch.uint8)
    packed = pack_planar(codes, 64)
    assert packed.shape == (5, 96) and torch.equal(unpack_planar(packed, 64), codes)
    assert packed[0, 0] == codes[0, 0] | codes[0, 32] << 4


def test_packed_bytes_are_half_or_one_a_code() -> None:
    w = weight_of(Case(1, 64, 256, 4, 64))
    assert all(form.pack(w).tensors["codes"].nbytes == 64 * 128 for form in (ops()["int4_matmul"].triton, ops()["int4_matmul"].cpu))
    w = weight_of(Case(1, 64, 256, 8, 0))
    assert all(form.pack(w).tensors["codes"].nbytes == 64 * 256 for form in (ops()["int8_matmul"].triton, ops()["int8_matmul"].cpu))


def test_dispatch_names_what_runs_and_why() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose(weight_of(Case(1, 64, 256, 3, 64)), cpu)[:2] == ("int4_matmul", ops()["int4_matmul"].cpu)
    assert choose(weight_of(Case(1, 64, 256, 6, 0)), cpu)[0] == "int8_matmul"
    name, form, why = choose(weight_of(Case(1, 64, 256, 4, 64, codebook=True)), cpu)
    assert form is REFERENCE and "codebook" in why and "reference" not in name
    assert choose(weight_of(Case(1, 64, 256, 4, 64, codebook=True)), cuda)[1].name == "triton"
    assert "groups" in choose(weight_of(Case(1, 64, 256, 8, 64)), cpu)[2]


def test_the_op_can_be_traced_without_running() -> None:
    op = ops()["int4_matmul"]
    packed = op.triton.pack(weight_of(Case(2, 64, 256, 4, 64)))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert op.triton.run(torch.empty(2, 256), packed).shape == (2, 64)


def test_machine_code_for_three_gpus(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "tests/offline_compile.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)
    assert {row["capability"] for row in rows} == {80, 90, 120}
    for row in rows:
        assert row["stack"] == 0 and row["local"] == 0, row
        assert row["shared"] <= SHARED_LIMIT[row["capability"]], row
        assert row["matrix"] > 0, row
        assert row["i2f"] == 0, row


def test_timing_is_ordered() -> None:
    timing = time_call([lambda: torch.ones(1000).sum()] * 3, torch.device("cpu"), samples=10)
    assert 0 < timing.p20 <= timing.median <= timing.p80 and timing.n == 10


def test_command_checks_and_prints_one_document(capsys: pytest.CaptureFixture) -> None:
    assert main(["--check", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"] and all(row["ok"] for row in document["checks"])
