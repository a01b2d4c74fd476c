"""The search for tiles, the tiles it may choose, and the table that keeps them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
import triton

from kernels import fp4_product, hadamard, kv_attention, low_bit_matmul, read_out, table
from kernels.bench import tune
from kernels.bench.measure import cases_of
from kernels.op import Activation, ops
from kernels.product import Case, random_weight
from kernels.table import Tile
from kernels.timing import Timing

CPU = torch.device("cpu")


def test_search_finds_the_fastest_tile_and_survives_those_that_do_not_run() -> None:
    best = Tile(8, 64, 4, 2, 3)
    calls: dict[Tile, int] = {}

    def seconds(tile: Tile, samples: int) -> float:
        calls[tile] = calls.get(tile, 0) + samples
        if tile.stages == 4:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 + sum(abs(a - b) for a, b in zip(tile, best, strict=True)) + (0.5 if samples == 5 and tile == best else 0)

    tiles = tune.candidates(1, 4096, 4096, 128, weight_only=True)
    assert best in tiles and low_bit_matmul.COPY not in tiles and low_bit_matmul.COPY in tune.candidates(64, 4096, 4096, 128, weight_only=True)
    assert tune.search(tiles, seconds) == (best, 1.0)
    assert calls[best] == 25 and sum(count == 25 for count in calls.values()) == 4
    with pytest.raises(RuntimeError, match="no tile"):
        tune.search([Tile(8, 64, 1, 2, 4)], seconds)


def test_every_candidate_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles that tuning may choose, one of each height, width and split, on a case with tails."""
    weight = random_weight(Case(20, 70, 640, 4, 64), torch.Generator().manual_seed(0))
    op = ops()["int4_matmul"]
    packed, x = op.gpu[0].pack(weight), torch.randn(20, 640, generator=torch.Generator().manual_seed(1)).half()
    names = ("codes", "high", "scale", "zero", "codebook", "nest")
    tensors = {name: packed.tensors.get(name) for name in names}
    expected = op.gpu[0].run(x, packed).float()
    for tile in (Tile(32, 32, 1, 4, 2), Tile(8, 128, 3, 2, 3), Tile(64, 64, 2, 2, 4), low_bit_matmul.COPY):
        found = low_bit_matmul.launch(x, tensors, packed.meta[0], packed.meta[1], tile).float()
        assert (found - expected).norm() / expected.norm() < 1e-3, tile


def test_no_tile_of_codes_is_multiplied_by_warp_groups() -> None:
    """Their operands lie differently from what the inline assembly takes: results would be wrong on Hopper alone, where no test of the gate runs."""
    chosen = [
        low_bit_matmul.default_tile(m, n, 32, bits, kind)
        for m in (1, 16, 33, 64, 95)
        for n in (64, 8192)
        for bits, kind in ((4, "integer"), (4, "table"), (8, "float"))
    ]
    tiles = [tile for m in (1, 16, 64) for tile in tune.candidates(m, 4096, 4096, 128, weight_only=True) if tile.rows]
    assert chosen and tiles and not any(low_bit_matmul.warp_groups(tile.columns, tile.warps) for tile in (*chosen, *tiles))


@pytest.mark.parametrize("case", [Case(33, 48, 1280, 4, 32, codebook="e2m1", scale="e8m0", activation=Activation("e2m1", "mx"))], ids=str)
def test_every_candidate_of_fp4_units_computes_the_same_and_the_table_is_asked(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On FP4 units as the interpreter has them; one tile of each height and split."""
    op, form = ops()["block_float_matmul"], fp4_product.FP4
    x, weight = op.problem(case, torch.Generator().manual_seed(0))
    packed, expected = form.pack(weight), op.reference(x, weight)
    tiles = {(tile.rows, tile.splits): tile for tile in fp4_product.candidates(case.m, case.n, case.k)}
    assert len(tiles) == 4
    asked = []
    for tile in tiles.values():
        monkeypatch.setattr(table, "tiles", lambda name, tile=tile: {fp4_product.table_key(packed.tensors["codes"], case.m, "mx"): tile})
        launch = fp4_product.launch
        monkeypatch.setattr(fp4_product, "launch", lambda x, t, per, given, tile, launch=launch: asked.append(tile) or launch(x, t, per, given, tile))
        found = form.run(x, packed).double()
        monkeypatch.setattr(fp4_product, "launch", launch)
        assert (found - expected).norm() / expected.norm() < 1e-3, tile
    assert asked == list(tiles.values())


def test_every_candidate_of_attention_and_rotation_computes_the_same() -> None:
    """One of each split and of each number of rows, beside the default."""
    attention, turning = ops()["kv_attention"], ops()["hadamard"]
    x, cache = attention.problem(next(case for case in attention.cases if case.tokens == 96), torch.Generator().manual_seed(0))
    expected = attention.reference(x, cache)
    for tile in {tile.splits: tile for tile in kv_attention.candidates(96)}.values():
        found = kv_attention.launch(x, cache.tensors(), cache.bits, None, tile).double()
        assert (found - expected).norm() / expected.norm() < 1e-3, tile
    x, turn = turning.problem(next(case for case in turning.cases if case.m == 17), torch.Generator().manual_seed(0))
    tiles = {tile.rows: tile for tile in hadamard.candidates(x.shape[1], hadamard.axes(8, 16))}
    assert len(tiles) > 1
    for tile in tiles.values():
        found, _ = hadamard.launch(x, turn.signs, turn.left, 16, "", tile)
        assert torch.allclose(found.double(), turning.reference(x, turn), atol=1e-4), tile


def test_the_default_tiles_follow_the_device() -> None:
    """Splits of one sequence of 8 key heads at 8,192 tokens on an A100, an H100 and a consumer Blackwell; few where there is little to split."""
    assert [kv_attention.default_tile(8, 8192, processors).splits for processors in (108, 132, 170)] == [27, 33, 42]
    assert [kv_attention.default_tile(rows, tokens, 132).splits for rows, tokens in ((8, 0), (8, 64), (64, 8192), (1, 1 << 20), (512, 8192))] == [
        1,
        2,
        4,
        63,
        1,
    ]


def test_the_table_is_written_row_by_row_and_looked_up_by_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "_name", lambda device: "Some GPU (2)")
    fake = lambda key: lambda tile, samples: 1e-6 * (tile.columns + tile.splits + tile.warps + tile.stages + tile.rows)  # noqa: E731
    for name, op in ((name, ops()[name]) for name in ("kv_attention", "hadamard")):
        monkeypatch.setitem(ops(), name, dataclasses.replace(op, timed=op.cases[:2]))
    rows = itertools.chain(tune.tuned(CPU, [(256, 512)], [3], fake), tune.others(CPU, fake))
    assert Path(tune.write("Some GPU (2)", rows, "python -m kernels tune")) == tmp_path / "some-gpu-2.json"
    document = json.loads((tmp_path / "some-gpu-2.json").read_text())
    assert document["device"] == "Some GPU (2)" and document["command"] and document["date"] and all(row["us"] <= row["default_us"] for row in document["rows"])
    assert {row["key"].split()[0] for row in document["rows"]} == {"low_bit_matmul", "scaled_matmul", "fp4_product", "kv_attention", "hadamard"}
    cuda = torch.device("cuda")
    product = ("low_bit_matmul", 4, 256, 512, 128)
    found = table.lookup(cuda, *product, 4, "integer number")
    assert found == table.lookup(cuda, *product, 3, "integer number") == Tile(8, 32, 1, 1, 2)
    assert table.lookup(cuda, *product, 5, "integer number") is table.lookup(cuda, *product, 4, "integer number zero") is None
    unlike = {row["key"] for row in document["rows"] if row["key"].startswith("scaled_matmul")}
    assert len(unlike) == len([case for op in ("w8a8_int8_matmul", "w8a8_fp8_matmul") for case in cases_of(ops()[op], [(256, 512)], [4])])
    assert all(table.lookup(cuda, "fp4_product", 4, 256, 512, group, 4, per) for group, per in ((32, "mx"), (16, "nvfp4")))
    assert table.lookup(cuda, "kv_attention", 8, 4, 64, 4, 96) == Tile(0, 32, 1, 2, 2) and table.lookup(cuda, "hadamard", 16, 16, 256, 16, 1) is not None
    table.tiles.cache_clear()


def test_a_tile_that_does_not_fit_gives_way_to_the_default_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of one shape have tiles of their own, and a table from another Triton may hold one that takes too much shared memory here."""
    large, default, tried = Tile(128, 128, 1, 8, 4), Tile(8, 64, 1, 2, 3), []
    kept = {table.key("low_bit_matmul", 4, 64, 128, 32, 1, "e2m1 e8m0"): large}
    monkeypatch.setattr(table, "tiles", lambda name: kept)

    def launch(tile: Tile) -> torch.Tensor:
        tried.append(tile)
        if tile == large:
            raise triton.OutOfResources(300_000, 232_448, "shared memory")
        return torch.ones(1)

    for form in ("integer number", "e2m1 e8m0", "e2m1 e8m0"):
        table.launched(CPU, table.key("low_bit_matmul", 4, 64, 128, 32, 1, form), lambda: default, launch)
    assert tried == [default, large, default, default]
    op = ops()["int4_matmul"]
    keys = {low_bit_matmul.table_key(packed.meta[0], "zero" in packed.tensors, 1) for packed in (op.gpu[0].pack(random_weight(case, torch.Generator()))
            for case in (Case(1, 64, 128, 4, 32), Case(1, 64, 128, 4, 32, False), Case(1, 64, 128, 4, 32, codebook="e2m1", scale="e8m0"),
                         Case(1, 64, 128, 4, 32, codebook="table")))}  # fmt: skip
    assert len(keys) == 4


def test_a_cpu_is_tuned_for_the_rows_from_which_weights_are_read_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "_name", lambda device: "Some CPU")
    seconds = lambda call: 2e-3 if call.args[-1] == 1 else len(call.args[0]) * 1e-4  # noqa: E731
    monkeypatch.setattr(tune, "time_call", lambda calls, device, samples: Timing(*[seconds(calls[0])] * 3, samples))
    tune.write("Some CPU", tune.crossings([(128, 64)], (8, 16, 32)), "python -m kernels tune")
    assert read_out.crossing(128, 64) == read_out.crossing(128, 64, 3) == 32 and read_out.crossing(128, 96) == 96 + (1 << 17) // 96
    table.tiles.cache_clear()
