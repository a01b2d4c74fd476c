"""Machine code of the kernels for four GPUs that need not be here: no spills, shared memory, matrix instructions, instructions a weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parent.parent
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes that one program may use
# Instructions a weight in the main loop for Hopper, for 1 and for 16 rows. At 3 TB/s the budgets are 2.5, 3.7, 4.9 and 9.9 for 2, 3, 4 and 8 bits:
# integers meet them up to 16 rows (2 bits for few), MXFP4 nearly, NVFP4 and tables do not: a table costs 2.8 instructions a weight to look up.
CEILING = {2: (2.3, 2.8), 3: (3.1, 3.5), 4: (2.5, 3.0), 8: (2.9, 3.4)}
CEILING_OF_MORE = {2: (3.8, 7.5), 3: (4.5, 9.0), 4: (3.9, 5.8), 8: (4.4, 8.7)}  # 32 and 64 rows; but for 4 bits, 64 are two tiles of 32
CEILING_OF_KIND = {"table": 6.3, "e2m1": 6.1, "e4m3": 4.4, "e5m2": 3.7}
# The matrix instruction of scaled products by the kind of their inputs and GPU. Few rows of float8 on Hopper are multiplied in 16 bits, which is not here.
UNITS = {
    "int8": {80: "IMMA", 90: "IGMMA", 100: "IMMA", 120: "IMMA"},
    "e4m3": {90: "QGMMA", 100: "UTCQMMA", 120: "QMMA"},
    "FP4": {100: "UTCOMMA", 120: "OMMA"},
}
ATTENTION_CEILING = {4: 9.3, 8: 11.0}  # a code of the cache


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What tests/offline_compile.py finds: recorded for kernels that are as they were, compiled for all others."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(ROOT),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    done = subprocess.run([sys.executable, "tests/offline_compile.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_record_is_of_these_kernels(facts: list[dict]) -> None:
    """One variant of each GPU is compiled whether it is recorded or not."""
    recorded = {row["variant"]: row for row in json.loads((ROOT / "assets" / "machine_code.json").read_text())}
    fresh = [row for row in facts if row["fresh"]]
    assert {row["capability"] for row in fresh} == {80, 90, 100, 120}
    if {row["triton"] for row in recorded.values()} != {triton.__version__}:
        pytest.skip(f"needs the Triton that the record was made with, not {triton.__version__}")
    for row in fresh:
        assert recorded.get(row["variant"]) == row | {"triton": triton.__version__}, "a kernel changed: run `make machine-code`"
    assert {row["variant"] for row in facts} == set(recorded)


def test_kernels_fit_four_gpus(facts: list[dict]) -> None:
    assert {row["capability"] for row in facts} == {80, 90, 100, 120}
    for row in facts:
        assert row["stack"] == 0 and row["local"] == 0, row
        assert row["in_a_row"], row
        assert row["shared"] <= SHARED_LIMIT[row["capability"]], row


def test_products_run_on_matrix_units_and_convert_no_weight(facts: list[dict]) -> None:
    products = [row for row in facts if row.get("product") or "per_weight" in row]
    assert {row["variant"].split()[1] for row in products} >= {"attention", "hadamard", "int8", "e4m3", "4-bit", "3-bit", "2-bit", "8-bit"}
    for row in products:
        assert row["matrix"] > 0, row
        assert row["i2f"] == 0 or "per_weight" not in row, row
        assert row["f2f"] == 0 or not row.get("plain"), row  # zeros are converted, a few a group


def test_scaled_products_run_on_the_units_of_their_inputs(facts: list[dict]) -> None:
    """Beside them only 16 bits for outlier columns of int8, whose few rows Hopper multiplies as Ampere does."""
    found = set()
    for row in facts:
        kind, few = row["variant"].split()[1], "rows 16" in row["variant"]
        if row.get("product") and kind in UNITS:
            unit = "IMMA" if kind == "int8" and few else UNITS[kind][row["capability"]]
            assert set(row["opcodes"]) == {unit} | ({"HMMA"} if kind == "int8" and few else set()), row
            found.add((kind, row["capability"]))
    assert found == {(kind, capability) for kind, units in UNITS.items() for capability in units}


def test_unpacked_weights_go_to_the_matrix_units_from_the_registers_they_were_unpacked_in(facts: list[dict]) -> None:
    """What codes.assembly makes lies as the instructions of one warp take it, and in no shared memory between."""
    for row in (row for row in facts if "per_weight" in row):
        assert row["in_registers"] and row["opcodes"] == ["HMMA"], row


def test_instructions_a_weight_stay_under_their_ceilings(facts: list[dict]) -> None:
    counted = [row for row in facts if row["capability"] == 90 and "per_weight" in row and row["rows"] <= 16]
    assert {row["bits"] for row in counted if row["plain"]} == set(CEILING) and {row["kind"] for row in counted} >= set(CEILING_OF_KIND)
    for row in counted:
        limit = CEILING[row["bits"]][row["rows"] > 1] if row["plain"] else CEILING_OF_KIND.get(row["kind"], 3.4)
        assert 0 < row["per_weight"] <= limit, row
    for bits, limits in CEILING_OF_MORE.items():
        for rows, limit in zip((32, 64), limits, strict=True):
            row = next(row for row in facts if f"sm_90 {bits}-bit integer bf16 rows {rows} group 128 scale number" == row["variant"])
            assert 0 < row["per_weight"] <= limit, row
    for row in (row for row in facts if row["capability"] == 90 and "per_code" in row):
        assert 0 < row["per_code"] <= ATTENTION_CEILING[8 if "8-bit" in row["variant"] else 4], row
