"""The kernels' command: checks, timings, bad input; the search for tiles and the table it writes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from explorer import docs
from explorer.__main__ import parser
from explorer.commands.run import parameters
from kernels import __main__ as command
from kernels import fp4_product, hadamard, kv_attention, linear16, low_bit_matmul, native, read_out, table
from kernels.bench import llama_cpp, measure, tune
from kernels.bench.check import check
from kernels.bench.llama_cpp import Blocks
from kernels.bench.measure import cases_of, divides
from kernels.bench.peers import PEERS
from kernels.bench.shapes import SHAPES
from kernels.op import Activation, ops
from kernels.product import Case, bf16_linear, random_weight, reordered_linear
from kernels.table import Tile
from kernels.timing import Timing
from tests.measuring import ON_CPU

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def test_check_prints_one_document(capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--check", "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"] and all(row["ok"] for row in document["checks"]) and {row["op"] for row in document["checks"]} == set(ops())


def test_timings_say_what_moved_and_what_it_is_compared_with(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHAPES, "tiny", ((64, 256),))
    monkeypatch.setattr(command, "SHAPES", SHAPES)
    monkeypatch.setattr(command, "BENCH", tmp_path)
    monkeypatch.setattr("kernels.bench.measure.MOST_COPIES", 3)
    monkeypatch.setattr(command, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr("kernels.bench.llama_cpp.MODELS", {"one block": Blocks(1, 256, 512, 4, 2)})
    assert (
        command.main(["--device", "cpu", "--ops", "int4_matmul,w8a8_int8_matmul", "--shapes", "tiny", "--rows", "1,3", "--samples", "5", "--peers", "--write"])
        == 0
    )
    shown = capsys.readouterr().out
    document = json.loads(next(tmp_path.iterdir()).read_text())
    rows = document["timings"]
    assert len(rows) == shown.count("% of copy") and {row["case"]["m"] for row in rows} == {1, 3}
    for row in rows:
        assert row["p20"] <= row["us"] <= row["p80"] and row["gb_per_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
        ways = row["baselines"]
        assert "bf16 linear" in ways and row["ratio"] == min(way["ratio"] for way in ways.values()) == ways[row["baseline"]]["ratio"]
        assert row["of_copy"] == pytest.approx(row["gb_per_s"] / 10) and row["ratio"] == pytest.approx(row["baseline_us"] / row["us"])
    four = next(row for row in rows if row["format"] == "4-bit g128" and row["case"]["m"] == 1)
    beside = 64 * 2 * 2 * 2 if ON_CPU == "cpu" else 64 * 2 * 2 + 16 * 4  # scale and shift; scale and table
    assert four["bytes"] == 64 * 128 + beside + 2 * 256 + 2 * 64  # codes, x, y
    assert four["peers"]["tinygemm"] == {"why": "needs a CUDA GPU"} and four["peers"]["torch CPU operator"]["ratio"] > 0
    (token,) = document["tokens"]
    assert token["blocks"] == "one block" and (token.get("ratio", 0) > 0 or token["why"])
    eight = [row for row in rows if row["op"] == "w8a8_int8_matmul"]
    assert all(row["peers"]["torch _int_mm"].get("ratio", 0) > 0 for row in eight if "columns" not in row["format"])


def test_low_bits_are_timed_beside_what_16_bit_layers_take_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's linear always, and beside it oneDNN's own layout of the weight where a CPU has units for bfloat16. Copies of that are rotated as of any other."""
    names = [base.name for base in bf16_linear(Case(1, 64, 128, 4, 64), torch.Generator().manual_seed(0))]
    assert names[0] == "bf16 linear" and ("bf16 linear, reordered weight" in names) == linear16.has_units()
    assert ("native bf16 linear" in names) == (not linear16.has_units() and native.library()[0] is not None)
    x, weight = torch.randn(3, 128), torch.randn(64, 128)
    monkeypatch.setattr(measure, "MOST_COPIES", 2)
    for rows, tensors in measure.rotated(x, {"w": torch.ops.mkldnn._reorder_linear_weight.default(weight, 1)}, CPU):
        assert (reordered_linear(rows, tensors) - x @ weight.T).norm() < 1e-5 * (x @ weight.T).norm()


def test_the_page_says_how_fast_torch_is_whatever_is_fastest() -> None:
    own = {"baseline": "native bf16 linear", "ratio": 2.0}
    cells = {1: own | {"baselines": {"bf16 linear": {"ratio": 3.5}}}, 4: own, 16: {"baseline": "bf16 linear", "ratio": 1.25}}
    assert docs.beside_torch(cells, [1, 4, 8, 16]) == "3.50, , 1.25" and docs.beside_torch({4: own}, [4]) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "nonsense"], "no shapes named nonsense"), (["--ops", "x"], "no op named x"), (["--rows", "0"], "positive"),
        (["--samples", "1"], "at least 5"), (["--every", "0"], "from 1 on"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_one_case_in_so_many_is_checked() -> None:
    rows, fewer = (list(check(CPU, ("hadamard",), every)) for every in (1, 3))
    assert [-(-row["cases"] // 3) for row in rows] == [row["cases"] for row in fewer] and all(row["ok"] for row in fewer)


def test_formats_are_timed_where_they_divide() -> None:
    op = ops()["w8a8_fp8_matmul"]
    assert not divides(Case(1, 0, 0, 8, -128), 896, 900) and divides(Case(1, 0, 0, 4, 128), 896, 896)
    assert {case.m for case in cases_of(op, [(896, 896)], [1, 4])} == {1, 4}
    assert all(torch.Size((n, k)) for shapes in SHAPES.values() for n, k in shapes) and {peer.op for peer in PEERS} <= set(ops())


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


def test_llama_cpp_is_given_the_weights_that_a_model_has(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf to read the file back")
    blocks = Blocks(2, 128, 256, 4, 2)
    llama_cpp.write(tmp_path / "random.gguf", blocks)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "random.gguf").tensors}
    low_bit = [tensor for name, tensor in tensors.items() if name.startswith("blk.1") and tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0]
    assert sum(tensor.n_elements for tensor in low_bit) == sum(n * k for n, k in blocks.products())
    values = gguf.quants.dequantize(tensors["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType.Q4_0)
    assert values.shape == (256, 128) and 0 < abs(values).max() < 1
    assert llama_cpp.ours(blocks).median > 0


def test_a_cpu_is_tuned_for_the_rows_from_which_weights_are_read_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "_name", lambda device: "Some CPU")
    seconds = lambda call: 2e-3 if call.args[-1] == 1 else len(call.args[0]) * 1e-4  # noqa: E731
    monkeypatch.setattr(tune, "time_call", lambda calls, device, samples: Timing(*[seconds(calls[0])] * 3, samples))
    tune.write("Some CPU", tune.crossings([(128, 64)], (8, 16, 32)), "python -m kernels tune")
    assert read_out.crossing(128, 64) == read_out.crossing(128, 64, 3) == 32 and read_out.crossing(128, 96) == 96 + (1 << 17) // 96
    table.tiles.cache_clear()


def test_committed_tables_and_timings_say_where_they_come_from() -> None:
    for path in [*(ROOT / "assets" / "bench").glob("*.json"), *(ROOT / "assets" / "kernels").glob("*.json")]:
        document = json.loads(path.read_text())
        assert document["command"].startswith("python -m kernels") and re.fullmatch(r"\d{4}-\d\d-\d\d", document["date"])
        assert table.file_name(document["device"]) == path.name and document["torch"]


def test_the_gpu_script_is_sound_and_names_commands_that_exist() -> None:
    script = ROOT / "kernels" / "gpu_session.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    for name, value in {
        '"$op"': "hadamard",
        "$rest": "hadamard",
        "$method": "rtn",
        "'$logs/": "'",
        '"${four[@]}"': re.search(r"four=\((.*)\)", text)[1],
    }.items():
        text = text.replace(name, value)
    for options in re.findall(r'-m kernels ([^|>"\n]*)', text):
        words = shlex.split(options)
        command.arguments([*words, *([] if words[0] == "tune" else ["--device", "cpu"])])
    for options in re.findall(r'-m explorer (run [^|>"\n]*)', text):
        parser().parse_args(shlex.split(options))
    decoded = re.findall(r"speed decode\S* \d+ (.*)", text)
    assert len(decoded) == 5
    for options in decoded:
        parameters(parser().parse_args(["speed", *shlex.split(options)]))


def test_timings_are_added_to_those_of_the_same_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "BENCH", tmp_path)
    row = lambda op, us: {"op": op, "format": "4-bit", "case": {"m": 1}, "us": us}  # noqa: E731
    made = lambda torch, rows, asked: {"device": "A GPU", "torch": torch, "triton": "3", "cuda": "13", "command": asked, "checks": [], "timings": rows}  # noqa: E731
    read = lambda: json.loads((tmp_path / "a-gpu.json").read_text())  # noqa: E731
    command.save(made("2.11", [row("a", 1), row("b", 2)], "first"), True)
    command.save(made("2.11", [row("b", 3), row("c", 4)], "second"), True)
    assert read()["timings"] == [row("a", 1), row("b", 3), row("c", 4)] and read()["command"] == "first; second"
    command.save(made("2.12", [row("d", 5)], "third"), True)
    assert read()["timings"] == [row("d", 5)] and read()["command"] == "third"
