"""Speeds are compared in pairs: two loops that run in turn, on a machine whose pace drifts, stalls and has little memory; and what is drawn of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from explorer import recorded
from explorer.docs import results_table
from explorer.figures import figures, tradeoffs
from explorer.metrics import Subject, speed
from explorer.paired import ONE_BY_ONE
from explorer.recorded import SEEDS
from explorer.records import Measurement, Progress, Report, report_from
from explorer.repeats import between

RECORDED = [report_from(data) for data in json.loads(SEEDS.read_text())]


class Machine:
    """A pretended machine: pace(second) says how much longer everything takes then."""

    def __init__(self, pace: object) -> None:
        self.now, self.pace, self.ran, self.graphs = 0.0, pace, [], 0

    def loop(self, name: str, seconds: float) -> SimpleNamespace:
        """A decoder whose token takes so long at a pace of 1."""

        def timed(prompt: object, new: int) -> tuple[float, list[float]]:
            self.ran.append(name)
            taken = []
            for cost in (4 * seconds, *[seconds] * (new - 1)):
                taken.append(cost * self.pace(self.now))
                self.now += taken[-1]
            return taken[0], taken[1:]

        return SimpleNamespace(timed=timed, capture=lambda: setattr(self, "graphs", self.graphs + 1))


def ratio(machine: Machine, low: float, sixteen: float) -> Measurement:
    arms = [(machine.loop("low", low), nullcontext), (machine.loop("16", sixteen), nullcontext)]
    events = speed.rounds(arms, None)
    try:
        while True:
            assert isinstance(next(events), Progress)
    except StopIteration as stop:
        firsts, latencies, _ = stop.value
    assert all(len(one) == len(latencies[0]) for one in (*firsts, *latencies))
    medians = [[sorted(steps)[len(steps) // 2] for steps in arm] for arm in latencies]
    return speed.speedup("decode_speedup", [b / a for a, b in zip(*medians, strict=True)])


@pytest.mark.parametrize("pace", [lambda t: 1.0, lambda t: 1 + 2 * t, lambda t: 3.0 if t > 0.7 else 1.0, lambda t: 9.0 if int(t * 50) % 7 == 0 else 1.0])
def test_a_drift_of_the_machine_does_not_change_the_speedup(pace: object) -> None:
    found = ratio(Machine(pace), 0.002, 0.003)
    assert found.low <= 1.5 * 1.0001 and found.high >= 1.5 * 0.9999 and found.value == pytest.approx(1.5, rel=0.05) and found.unit == "x" and found.n == 6
    assert found.low > 1, "one and a half times as fast shows"


def test_the_loops_take_turns_and_a_slow_one_runs_less_often() -> None:
    machine = Machine(lambda t: 1.0)
    ratio(machine, 0.002, 0.003)
    assert machine.ran == ["low", "16", *["low", "16", "16", "low"] * 3] and machine.graphs == 2
    machine = Machine(lambda t: 1.0)
    assert ratio(machine, 0.2, 0.3).n == speed.LEAST


def test_the_interval_is_students_over_rounds() -> None:
    found = speed.speedup("decode_speedup", [1.0, 2.0, 4.0])
    half = 4.302653 * 0.693147 / 3**0.5
    assert found.value == pytest.approx(2) and found.high / found.value == pytest.approx(2.718281828**half, rel=1e-4)
    assert found.low * found.high == pytest.approx(4)


def subject(**changes: object) -> Subject:
    """One layer of 64 x 64 and an embedding."""
    model, layer = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(8, 64)), torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    loaded = SimpleNamespace(model=model, offloaded=False, device=torch.device("cpu"))
    return dataclasses.replace(Subject(loaded, {"a": layer}, {}, {"a": layer}, torch.zeros(1, 8), 0.0), **changes)


def test_no_second_loop_where_there_is_none_or_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "spare_memory", lambda device: 1 << 20)
    assert speed.two_fit(subject()) and speed.two_fit(subject(layers={}, kv_bits=4)), "a cache in low bits is compared with one in 16"
    assert not speed.two_fit(subject(layers={})), "the baseline itself"
    whole = subject()
    assert not speed.two_fit(dataclasses.replace(whole, loaded=SimpleNamespace(**vars(whole.loaded) | {"offloaded": True})))
    assert not speed.two_fit(subject(originals={"a": torch.nn.Linear(64, 64, device="meta")})), "random weights that were let go"
    monkeypatch.setattr(speed, "spare_memory", lambda device: 8000)
    assert not speed.two_fit(subject())


def point(key: str, method: str, kld: float, times: tuple[float, float, float] | None) -> dict:
    more = {} if times is None else {"decode_speedup": list(times)}
    numbers = {"kld_mean": [kld, 0.9 * kld, 1.1 * kld], "decode_tokens_per_second": [500.0, 400.0, 625.0], **more}
    return {"key": key, "name": key, "method": method, "origin": "measured now", "device": "a CPU", "metrics": numbers}


def test_time_is_relative_to_16_bits() -> None:
    points = [point("gptq", "gptq", 0.01, (1.5, 1.4, 1.6)), point("rtn", "rtn", 0.04, (1.6, 1.45, 1.75)), point("fast", "binary", 2.0, (3.0, 2.9, 3.1))]
    data = {"points": points, "view": "latency"}
    standing = {p["key"]: kind for p, *_, kind in tradeoffs.set_out(data)[1]}
    assert standing == {"gptq": "best", "rtn": "best", "fast": "best"}
    drawn = tradeoffs.draw(data)
    marks = {trace["name"]: trace for trace in drawn["data"]}
    assert marks["GPTQ"]["x"] == [pytest.approx(1 / 1.5)] and marks["GPTQ"]["error_x"]["array"] == [pytest.approx((between() - 1) / 1.5)]
    assert drawn["layout"]["xaxis"]["title"]["text"] == "time per token, 16 bits = 1" and drawn["layout"]["shapes"][0]["x0"] == 1.0
    by_bits = [p | {"metrics": p["metrics"] | {"bits_per_weight": [4.0, None, None]}} for p in points]
    assert "another that is no slower is measurably better" in tradeoffs.summary(data) and ONE_BY_ONE in tradeoffs.summary(data)
    assert "no larger" in tradeoffs.summary({"points": by_bits, "view": "bits"})
    late = tradeoffs.summary({"points": [*points, point("old", "awq", 0.02, None)], "view": "latency"})
    assert "1 more have no speed-up yet and are left out" in late


def test_where_no_point_has_a_speedup_nothing_is_beaten() -> None:
    data = {"points": [point(name, name, kld, None) for name, kld in (("rtn", 0.04), ("gptq", 0.01))], "view": "latency"}
    drawn, said = tradeoffs.draw(data), tradeoffs.summary(data)
    assert (
        all(trace["opacity"] == 1.0 and "error_x" not in trace for trace in drawn["data"])
        and "each timed on its own" in drawn["layout"]["xaxis"]["title"]["text"]
    )
    assert "nothing is called beaten" in said and "faded" not in said and "compare no two times" in tradeoffs.looks(data)


def test_methods_that_people_ask_about_keep_their_look() -> None:
    names = ["rtn", "gptq", "awq", "hqq", "nf4", "kquant", "fp8", "mxfp", "binary", "absmax"]
    for shown in (names, names[::-1], names[2:4]):
        traces = tradeoffs.draw({"points": [point(name, name, 0.01 * (i + 1), (1.5, 1.4, 1.6)) for i, name in enumerate(shown)], "view": "latency"})["data"]
        looks = {trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"][0]) for trace in traces if trace["mode"] != "lines"}
        assert looks["AWQ"] == ("#009e73", "triangle-up") and looks["HQQ"] == ("#b4659a", "x") and len(set(looks.values())) == len(looks)


def faster(report: Report) -> Report:
    others = (m for m in report.measurements if m.metric != "decode_speedup")
    return dataclasses.replace(report, measurements=(*others, Measurement("decode_speedup", 1.42, "x", low=1.31, high=1.53, n=6)))


def test_figure_table_and_readme_tell_the_speedup_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    said = figures()["speed"].summary([RECORDED[0], faster(RECORDED[1])], "")
    assert "1.42 times as fast as 16 bits in the same run (1.31 to 1.53 within it" in said
    monkeypatch.setattr("explorer.docs.seeds", lambda: [faster(report) for report in recorded.seeds()])
    table = results_table()
    assert "speed-up over 16 bits, interleaved (95% within its run) |" in table and "| 1.42 (1.31 to 1.53) |" in table


def test_the_metric_yields_both_ratios_of_a_real_model(loaded_demo: Subject) -> None:
    found = {m.metric: m for m in speed.measure(loaded_demo) if isinstance(m, Measurement)}
    both = [found[name] for name in ("decode_speedup", "first_token_speedup")]
    assert all(m.n == 2 and 0 < m.low < m.value < m.high for m in both) and found["decode_latencies"].n == 2 * (speed.NEW - 1)
    assert isinstance(loaded_demo.loaded.model.model.layers[0].mlp.down_proj, torch.nn.Linear), "its own layers are back"


@pytest.fixture
def loaded_demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """The bundled model with one layer rounded, timed over few tokens."""
    from explorer import models
    from explorer.hub import Hub
    from explorer.methods import build
    from explorer.quantizing import quantize
    from tests.measuring import drained

    for name, value in {"PROMPT": 8, "NEW": 5, "ROUNDS": 2, "SLOW": 1e9}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "bandwidth", lambda device: (SimpleNamespace(value=1e10, waited=0.0), "measured"))
    loaded = models.load(models.resolve("demo", Hub()), torch.device("cpu"), Hub())
    linears = models.linears(loaded.model)
    some = {name: linears[name] for name in list(linears)[:1]}
    yield drained(quantize(Subject(loaded, {}, {}, some, torch.zeros(1, 16, dtype=torch.long), 0.0), build("rtn", {}), None, ""))[0]
