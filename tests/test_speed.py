"""What the Speed view says: verdicts from given times, crossings by arithmetic, both tasks and the profile on a real tiny model, kernel tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from explorer import devices, models, tasks
from explorer.__main__ import main
from explorer.commands.run import table
from explorer.experiment import LocalRunner
from explorer.figures import roofline as figure
from explorer.figures.roofline import above
from explorer.findings import busy
from explorer.hub import Hub
from explorer.kvcache import bytes_at
from explorer.loader import Loader
from explorer.recorded import SEEDS
from explorer.records import Answer, InputError, Measurement, Progress, Report, report_from
from explorer.speeds import speed
from explorer.store import Store
from explorer.table import comparison
from explorer.tasks import batch, roofline
from explorer.tasks.roofline import verdict
from explorer.turns import Line
from kernels import native, timing
from tests.measuring import ON_CPU

CPU = torch.device("cpu")
SEED = next(report for data in json.loads(SEEDS.read_text()) if (report := report_from(data)).name == "GPTQ 4-bit g64")
ROOF = {"read": 1e10, "copy": 1e10, "matmul_16": 1e12, "matmul_8": None, "sheet": None}


def told(step: float, seconds: float, read: float, flops: float, p95: float = 1.0, ops: bool = True) -> dict[str, str]:
    op = {"op": "down", "kernel": "k", "shape": [1, 1], "calls": 1, "seconds": seconds, "bytes": read, "flops": flops}
    return verdict({"roof": ROOF, "ops": [op] if ops else [], "why": "a reason", "step": {"p50": step, "p95": p95 * step, "bytes": read, "latencies": []}})


def test_verdict_follows_the_times() -> None:
    assert told(1e-2, 1e-3, 1e6, 1e6)["limit"] == "overhead"
    assert told(1e-2, 9e-3, 8e7, 1e6)["limit"] == "bandwidth" and "reading 80 MB" in told(1e-2, 9e-3, 8e7, 1e6)["sentence"]
    assert told(1e-2, 9e-3, 1e6, 8e9)["limit"] == "compute"
    slow = told(1e-2, 9e-3, 1e7, 1e6)
    assert slow["limit"] == "kernels" and "down reaches 11% of the roof" in slow["sentence"]
    assert told(1e-2, 9e-3, 8e7, 1e6, p95=5)["limit"] == "other work"
    assert told(1e-2, 0, 8e7, 0, ops=False)["limit"] == "bandwidth" and "a reason" in told(1e-2, 0, 1e6, 0, ops=False)["sentence"]


def rates(*values: float) -> list[dict[str, float]]:
    return [{"batch": 2**i, "tokens_per_second": value, "low": value, "high": value} for i, value in enumerate(values)]


def test_crossing_is_where_the_lines_meet_for_good() -> None:
    assert batch.crossing(rates(4, 4, 4), rates(1, 2, 8)) == pytest.approx(2 * math.sqrt(2))
    assert batch.crossing(rates(4, 4, 4), rates(1, 2, 3)) is None
    assert batch.crossing(rates(1, 1), rates(2, 2)) == 1
    assert batch.crossing(rates(4, 1, 4, 1), rates(2, 2, 2, 4)) == pytest.approx(4 * 2 ** (1 / 3)), "the last crossing, not a dip before it"
    arms = [{"role": "chosen", "label": "X", "points": rates(4, 4)}, {"role": "16 bits", "label": "B", "points": rates(1, 8)}]
    said = batch.sentence(arms, {"16 bits": 1.6})
    assert said == "X: beside 16 bits it is overtaken at a batch of about 2. All ran in turn at each batch.", "how fast one sequence is stands in Compare"
    assert "one after the other, for want of memory" in batch.sentence(arms, {"16 bits": 1.6}, together=False)
    assert "stays ahead up to batch 2" in batch.sentence(arms, {"16 bits": None}) and not batch.disturbance(arms)
    arms[1]["points"][0]["high"] *= 3
    assert "a factor of 3.0" in batch.disturbance(arms) and "as fast" not in batch.disturbance(arms)


def test_disturbed_answers_are_measured_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def work(engine: tasks.Engine, disturbed: bool) -> Iterator[Answer]:
        made.append(disturbed)
        yield Answer("trial", {"disturbed": disturbed})

    monkeypatch.setattr(tasks, "tasks", lambda: {"trial": tasks.Task("trial", work)})
    monkeypatch.setattr(tasks, "made_by", lambda *modules: "")
    for disturbed in (True, True, False, False):
        list(tasks.do("trial", {"disturbed": disturbed}, store, Loader(CPU), Line()))
    assert made == [True, True, False]


@pytest.fixture
def runner(store: Store, monkeypatch: pytest.MonkeyPatch) -> LocalRunner:
    """A runner on a device whose rates are given, so that nothing reads 256 MiB, and whose times pass for undisturbed however busy it is."""
    monkeypatch.setattr(batch, "NOISE", math.inf)
    monkeypatch.setattr(roofline, "NOISE", math.inf)
    monkeypatch.setattr(devices, "read_rate", lambda device: devices.Rate(ROOF["read"]))
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda device: ROOF["copy"])
    monkeypatch.setattr(devices, "matmul_rate", lambda device, dtype: ROOF["matmul_16"])
    return LocalRunner(store, Loader(CPU))


def answer(runner: LocalRunner, task: str, **arguments: object) -> Answer:
    return list(runner.do(task, arguments))[-1]


def test_roofline_counts_every_product_of_a_token(runner: LocalRunner, tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "method": "rtn", "params": {"group_size": 32}, "kv_bits": 4, "head_bits": 4}
    found = answer(runner, "roofline", **asked).data
    ops = {op["op"]: op for op in found["ops"]}
    assert list(ops) == ["q, k and v", "attention output", "gate and up", "down", "head", "attention over the cache"] and found["loop"] == "own loop"
    assert ops["gate and up"]["shape"] == [160, 64] and ops["gate and up"]["calls"] == 2 and ops["head"]["shape"] == [4096, 64]
    weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 80) + 4096 * 64
    seen, kv_form = ops.pop("attention over the cache"), "torch" if native.library()[0] is None else "native"
    assert seen["kernel"] == f"kv_attention ({kv_form})" and seen["shape"] == [seen["flops"] // (4 * 64 * 2), 64] and seen["seconds"] > 0
    config = models.load(models.resolve(str(tiny_folder), Hub()), CPU, Hub()).model.config
    assert seen["shape"][0] > 64 and seen["bytes"] == bytes_at(config, seen["shape"][0], 4)
    assert sum(op["flops"] for op in ops.values()) == 2 * weights
    assert "int4" in ops["head"]["kernel"] and "linear" in ops["down"]["kernel"], "80 inputs are no multiple of 32: this layer stays in 16 bits"
    assert len(found["step"]["latencies"]) == 72 and found["step"]["p50"] <= found["step"]["p95"] and found["limit"] and found["sentence"].endswith(".")
    again = answer(runner, "roofline", **asked)
    assert again.provenance["from_store"] and again.data == found


def test_batch_sweep_measures_three_arms_at_the_same_sizes(runner: LocalRunner, tiny_folder: Path) -> None:
    found = answer(runner, "batch", model=str(tiny_folder), method="rtn", params={"granularity": "channel"}, context=16, largest=4).data
    assert [arm["role"] for arm in found["arms"]] == ["chosen", "16 bits", "W8A8"] and set(found["crossing"]) == {"16 bits", "W8A8"}
    for arm in found["arms"]:
        assert [point["batch"] for point in arm["points"]] == [1, 2, 4]
        one, four = arm["points"][0], arm["points"][2]
        assert four["flops"] == 4 * one["flops"] and 0 < four["bytes"] - one["bytes"] < one["bytes"]
        assert all(p["low"] <= p["tokens_per_second"] * 1.001 and p["prefill_tokens_per_second"] > 0 for p in arm["points"])
    assert found["arms"][0]["points"][0]["bytes"] < found["arms"][2]["points"][0]["bytes"] < found["arms"][1]["points"][0]["bytes"]
    assert "ran in turn" in found["sentence"] or found["disturbed"]
    assert [arm["peak"] for arm in found["arms"]] == ["matmul_16", "matmul_16", "matmul_8"]
    smooth = answer(runner, "batch", model=str(tiny_folder), method="smoothquant", params={}, context=16, largest=1).data["arms"][0]
    assert smooth["peak"] == "matmul_8", "whatever an arm's role is"
    with pytest.raises(InputError, match="a context of 8 to 2,048"):
        answer(runner, "batch", model=str(tiny_folder), method="rtn", params={}, context=1)


def test_arms_run_in_turn_where_memory_holds_them(runner: LocalRunner, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict = {"model": str(tiny_folder), "method": "rtn", "params": {"granularity": "channel"}, "context": 16, "largest": 2}
    for spare, order in ((1 << 40, ["chosen", "16 bits", "W8A8", "W8A8", "16 bits", "chosen"]), (0, ["chosen"] * 3 + ["16 bits"] * 3)):
        monkeypatch.setattr(batch, "spare_memory", lambda device, spare=spare: spare)
        events = list(runner.do("batch", asked | {"context": 16 + bool(spare)}))
        assert [event.detail for event in events if isinstance(event, Progress) and event.stage == "batch 1"][:6] == order
        assert events[-1].data["sentence"].endswith("in turn at each batch." if spare else "counts too.")


def test_profile_writes_a_trace_with_named_ranges(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trace = tmp_path / "trace.json"
    asked = ["profile", "--model", str(tiny_folder), "--method", "rtn", "--granularity", "channel", "--new", "2", "--output", str(trace)]
    assert main(asked) == 0
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"token 0", "token 1", f"layers.1 gate_up int4_matmul ({ON_CPU})"} <= names and any(name.startswith("head ") for name in names)
    shown = capsys.readouterr().out
    assert "own loop; wrote" in shown and "nsys profile --trace=cuda,nvtx" in shown
    assert main([*asked[:-1], str(tmp_path / "none" / "t.json")]) == 2 and "There is no folder" in capsys.readouterr().err


def test_rates_are_measured_and_positive() -> None:
    assert devices.read_rate(CPU).value > 1e8 and timing.copy_bandwidth(CPU) > 1e8 and devices.data_sheet(CPU) is None
    assert devices.matmul_rate(CPU, torch.bfloat16) > 1e8 and devices.matmul_rate(CPU, torch.int8) > 1e8
    assert 0 < devices.free_memory(CPU) <= devices.total_memory(CPU)


def test_one_read_rate_a_process_measured_again_while_threads_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_reads", {})
    rates, waits = iter((12e9, 44e9, 40e9)), iter((0.0, 5.0, 5.0, 5.0))
    monkeypatch.setattr(devices, "read_bandwidth", lambda device: next(rates))
    monkeypatch.setattr(devices, "waited", lambda: next(waits))
    first = devices.read_rate(CPU)
    assert first.value == 12e9 and "the machine was busy" in first.doubt()
    found = [devices.read_rate(CPU), devices.bandwidth(CPU)[0], devices.read_rate(CPU)]
    assert found == [devices.Rate(44e9, 0.0)] * 3 and not found[0].doubt(), "undisturbed, it stays"

    def told(waited: float) -> str:
        kept = tuple(m for m in SEED.measurements if m.metric not in ("decode_bandwidth", "decode_bandwidth_waited", "decode_limit"))
        given = Measurement("decode_bandwidth", 12e9, "bytes/s"), Measurement("decode_bandwidth_waited", waited, "%"), Measurement("decode_limit", 9e3)
        return " ".join(speed(Report(SEED.experiment, (*kept, *given), SEED.provenance)))

    assert "is not known: threads waited 40% of their time for a core while memory was read" in told(40.0)
    assert "threads" not in told(3.0) and "12.0 GB/s, measured in the same process" in told(3.0)


def test_a_point_above_the_roof_says_why() -> None:
    roof, op = ROOF | {"cache": 32 * 2**20}, {"op": "head", "kernel": "k", "shape": [8, 8], "calls": 1, "flops": 1e6, "bytes": 3 * 2**20, "seconds": 1e-4}
    assert above(op, roof) == "from cache: 3.0 MiB fit in 32" and not above(op | {"seconds": 1.0}, roof)
    assert above(op | {"bytes": 2**26, "seconds": 6e-3}, roof) == "the roof was measured too low" and "or the roof" in above(op, ROOF)
    assert "or the roof" in above(op, roof | {"doubt": "the machine was busy"})
    data = figure.EXAMPLE | {"roof": roof, "ops": [op]}
    assert figure.draw(data)["data"][-1]["name"] == "head (from cache)" and "head (from cache: 3.0 MiB fit in 32)" in figure.summary(data)


def test_a_cpus_name_tells_threads_and_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, words in ((1, "1 thread"), (2, "2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = timing.device_name(CPU).removesuffix(" and AMX")
        assert found.endswith(f", {words}, {torch.backends.cpu.get_cpu_capability()}")


def test_a_run_beside_other_work_says_so() -> None:

    def timed(lost: float) -> Report:
        return Report(SEED.experiment, (Measurement("decode_waited", lost, "%"), SEED.find("decode_tokens_per_second")), SEED.provenance)

    assert "threads waited 33% of their time for a core, so nothing is concluded; measure again" in comparison([timed(33.0)])
    assert "threads waited 33%" in table(timed(33.0)) and "--remeasure measures again" in table(timed(33.0))
    assert "busy" not in comparison([timed(2.0)]) and not busy(SEED), "a recorded report does not say"
    assert not devices.waited() < 0


def test_kernel_tables_show_what_is_there(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    assert gr
    from explorer.ui.tabs.speed import kernel_tables

    assert "No kernel timings are here yet" in kernel_tables(tmp_path)
    row = {"op": "w4", "form": "cpu", "format": "int4 g128", "case": {"m": 1, "n": 64, "k": 32}, "us": 1.5, "p80": 2.0, "gb_per_s": 3.0, "of_copy": 0.5}
    rows = [row | {"ratio": 4.0, "baseline": "bf16 linear", "peers": {}}]
    (tmp_path / "a.json").write_text(json.dumps({"device": "<b>X</b>", "torch": "2", "timings": rows}))
    (tmp_path / "b.json").write_text("{")
    shown = kernel_tables(tmp_path)
    assert (
        "&lt;b&gt;X" in shown
        and "<th scope='row'>64 x 32</th><th scope='row'>1</th><td>1.5</td>" in shown
        and "peers" not in shown
        and "b.json cannot be read" in shown
    )


def test_speed_command_prints_both_answers(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(devices, "read_rate", lambda device: devices.Rate(ROOF["read"]))
    monkeypatch.setattr(devices, "matmul_rate", lambda device, dtype: ROOF["matmul_16"])
    asked = ["speed", "--model", str(tiny_folder), "--granularity", "channel", "--store", str(tmp_path / "s.db")]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "roof: read 10.0 GB/s" in shown and f"int4_matmul ({ON_CPU})" in shown and "ms a token" in shown
    assert main([*asked, "--batch", "2", "--context", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["batch"] for p in found["arms"][0]["points"]] == [1, 2] and found["provenance"]["device"]
    assert main([*asked, "--batch", "1000"]) == 2 and "at most 256 sequences" in capsys.readouterr().err
