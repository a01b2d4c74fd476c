"""The kernels' command: checks, timings, bad input; the search for tiles and the table it writes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from explorer import docs
from explorer.__main__ import parser
from explorer.commands.run import parameters
from kernels import __main__ as command
from kernels import linear16, native, table
from kernels.bench import llama_cpp, measure
from kernels.bench.check import check
from kernels.bench.llama_cpp import Blocks
from kernels.bench.measure import cases_of, divides
from kernels.bench.peers import PEERS
from kernels.bench.shapes import SHAPES
from kernels.op import ops
from kernels.product import Case, bf16_linear, reordered_linear
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
