"""Sweeps: the stream, resuming, the command; error through depth and the paired comparison; their charts' rules."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer import data, models, paired
from explorer.__main__ import main
from explorer.experiment import LocalRunner
from explorer.figures import ladder, tradeoffs
from explorer.grid import grid
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.methods import build, catalogue, spec_of
from explorer.metrics import Subject
from explorer.metrics.depth import METRIC as DEPTH
from explorer.quantizing import quantize
from explorer.recorded import SEEDS
from explorer.records import Answer, InputError, Measurement, Progress, Report, report_from
from explorer.store import Store
from explorer.tasks import distinguish, sweep

REPORTS = [report_from(entry) for entry in json.loads(SEEDS.read_text())]


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


def finish(events: Iterator) -> Answer:
    return list(events)[-1]


class FakeEngine:
    """Reports from the seeds; refuses 5 bits, has no memory for 6 and a bug at 7."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        self.asked.append((method, params))
        yield Progress("quality", 1, 2)
        if params.get("bits") == 5:
            raise InputError("This layer will not have it.")
        if params.get("bits") == 6:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if params.get("bits") == 7:
            raise RuntimeError("the kernel is wrong")
        yield REPORTS[0 if method == "none" else 2]


def test_the_command_tells_what_is_left_out_and_refuses_what_none_takes(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    class Runner:
        def do(self, task: str, asked: dict) -> Iterator:
            yield from sweep.work(FakeEngine(), **asked)

    monkeypatch.setattr("explorer.commands.sweep.runner_of", lambda store: Runner())
    flags = ["sweep", "--store", str(tmp_path / "r.db"), "--methods"]
    assert main([*flags, "rtn,qat", "--bits", "8,3"]) == 0 and "left out: qat has no 8 bits" in capsys.readouterr().err
    assert main([*flags, "fp8"]) == 0 and "left out" not in capsys.readouterr().err, "nobody asked for its bits"
    assert main([*flags, "qat", "--bits", "8,3"]) == 2 and "qat: no 8 bits here" in capsys.readouterr().err


def test_sweep_streams_a_report_each_and_passes_over_what_is_refused() -> None:
    engine = FakeEngine()
    events = list(sweep.work(engine, "demo", ["rtn"], [4, 5], [64]))
    assert [type(e) for e in events if not isinstance(e, Progress)] == [Report, Report, Answer]
    assert len(engine.asked) == 3 and events[-1].data["done"] == 2 and list(events[-1].data["failed"].values()) == ["This layer will not have it."]
    assert all(e.total == 3 for e in events if isinstance(e, Progress))
    said = [event.detail for event in events if isinstance(event, Progress)]
    assert said[1] == "16-bit baseline, quality 50%" and said[2] == "RTN 4-bit g64", "as the page names them"
    assert list(events[-1].data["failed"]) == ["RTN 5-bit g64"]


def test_a_sweep_says_that_it_waits_as_a_run_does() -> None:
    """Whoever limits computing goes by the stage."""

    class Busy(FakeEngine):
        def run(self, *asked: object, **options: object) -> Iterator:
            yield Progress("download", 1, 4)
            yield Progress("waiting", 0, 1, "1 experiment ahead in line")
            yield from super().run(*asked, **options)

    told = [event for event in sweep.work(Busy(), "demo", ["rtn"], [4], [64]) if isinstance(event, Progress)]
    assert [event.stage for event in told] == ["sweep", "download", "waiting", "sweep"] * 2
    assert [(event.done, event.total) for event in told] == [(0, 2)] * 4 + [(1, 2)] * 4
    assert [event.detail for event in told[1:4]] == [
        "16-bit baseline, download 25%",
        "16-bit baseline, 1 experiment ahead in line",
        "16-bit baseline, quality 50%",
    ]


def test_sweep_goes_on_where_memory_was_not_enough_and_hides_no_bug() -> None:
    *_, answer = sweep.work(FakeEngine(), "demo", ["rtn"], [4, 6], [64])
    assert answer.data["done"] == 2 and [row["error"] for row in answer.data["refused"]] == [sweep.TOO_LARGE]
    with pytest.raises(RuntimeError, match="kernel is wrong"):
        list(sweep.work(FakeEngine(), "demo", ["rtn"], [7], [64]))


def test_sweep_command_resumes_and_writes_csv_and_json(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [
        "sweep",
        "--model",
        str(tiny_folder),
        "--methods",
        "rtn",
        "--bits",
        "4",
        "--group-size",
        "32",
        "--tokens",
        "2048",
        "--store",
        str(tmp_path / "r.db"),
    ]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in rows] == ["16-bit baseline", "RTN 4-bit g32"] and float(rows[1]["kld_mean_nats"]) > 0 and "sweep: 1/2" in err
    assert main([*argv, "--json", "--csv", str(tmp_path / "rows.csv")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all(entry["provenance"]["from_store"] for entry in document["reports"]) and not document["failed"]
    again = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert again == [row | {name: new[name] for name in ("origin", "speed_origin")} for row, new in zip(rows, again, strict=True)] and again != rows
    assert main([*argv[:6], "4,x"]) == 2 and main([*argv[:4], "magic"]) == 2
    assert main([*argv, "--csv", "/no/such/place.csv"]) == 2


def test_error_through_depth(load: Loader) -> None:
    loaded = load(models.resolve("demo", Hub()))
    rows = models.windows(loaded, data.bundled_text("evaluation"), 1024, 512)
    empty = Subject(loaded, {}, {}, models.linears(loaded.model), rows, 0.0)
    assert list(DEPTH.measure(empty))[-1].value == [0.0] * 6
    found = []
    for bits in (8, 4):
        events = quantize(empty, build("rtn", {"bits": bits}), None, "")
        while True:
            try:
                next(events)
            except StopIteration as stop:
                found.append(list(DEPTH.measure(stop.value[0]))[-1].value)
                break
    assert all(0 < small < large / 4 for small, large in zip(*found, strict=True)) and len(found[0]) == 6


def test_two_configurations_are_told_apart_no_later_than_needed(store: Store) -> None:
    runner = LocalRunner(store)
    asked = {"model": "demo", "tokens": 8192, "first": {"method": "rtn", "params": {"bits": 4}}, "second": {"method": "rtn", "params": {"bits": 2}}}
    answer = finish(runner.do("distinguish", asked)).data
    assert answer["verdict"] == "first" and answer["looks"][-1]["tokens"] <= answer["available"] / 2, "2 bits are ruined: half of the windows tell"
    assert answer["looks"][-1]["high"] < 0 and answer["names"] == ["RTN 4-bit g64", "RTN 2-bit g64"]
    with pytest.raises(InputError, match="at least 8 windows"):
        finish(runner.do("distinguish", asked | {"tokens": 2048}))
    with pytest.raises(InputError, match="same configuration"):
        finish(runner.do("distinguish", asked | {"second": asked["first"]}))
    assert distinguish.verdict(-0.2, 0.3, 0.5) == "equal" and distinguish.verdict(-0.2, 0.6, 0.5) == "" and distinguish.verdict(0.1, 0.2, 0.5) == "second"


def test_a_point_is_beaten_only_beyond_the_intervals() -> None:
    points = [(4.0, 0.02, 0.01, 0.03), (4.2, 0.025, 0.02, 0.035), (4.3, 0.08, 0.07, 0.09), (3.0, 0.2, None, None), (4.0, 0.02, 0.01, 0.03)]
    assert paired.standing([(x, quality, None) for x, *quality in points]) == ["best", "near", "beaten", "best", "best"]


def test_points_of_the_same_windows_are_paired() -> None:
    """Their intervals overlap: one is worse in every window and beaten, one is as often better."""
    windows = [0.01, 0.02, 0.03]
    worse, same = ([w + move for w, move in zip(windows, moves, strict=True)] for moves in ([0.005, 0.006, 0.005], [0.004, -0.003, 0.0]))
    points = [(4.0, 0.02, 0.0, 0.04, windows), (4.2, 0.0253, 0.0, 0.05, worse), (4.3, 0.0203, 0.0, 0.05, same)]
    assert paired.standing([(x, (y, low, high), means) for x, y, low, high, means in points]) == ["best", "beaten", "near"]
    values = [Measurement("kld_windows", windows, "nats"), Measurement("nll_delta_windows", same, "nats")]
    with_windows = dataclasses.replace(REPORTS[0], measurements=(*values, *REPORTS[0].measurements))
    assert tradeoffs.point_of(with_windows, "a", "recorded")["windows"] == {"kld_mean": windows, "perplexity_delta": same}


def test_times_of_two_devices_are_never_put_together() -> None:
    points = [tradeoffs.point_of(report, str(i), "recorded") for i, report in enumerate(REPORTS)]
    other = points[1] | {"device": "another", "origin": "measured now"}
    kept, left, device = tradeoffs.comparable({"points": [*points, other], "view": "latency"})
    assert (kept, left, device) == ([other], len(points), "another")
    assert tradeoffs.comparable({"points": [*points, other], "view": "bits"})[1] == 0
    assert "left out" in tradeoffs.summary({"points": [*points, other], "view": "latency"})


def rung(bits: int, kld: float) -> Report:
    experiment = REPORTS[0].experiment
    made = spec_of(build("rtn", ladder.RUNGS | {"bits": bits}))
    moved = {"kld_mean": kld, "bits_per_weight": bits + 0.25, "top1_agreement": 100 - 100 * kld}
    values = [Measurement(name, value) for name, value in moved.items()] + [Measurement("perplexity_delta", 100 * kld, low=90 * kld, high=110 * kld)]
    return Report(type(experiment)(experiment.model, made, experiment.evaluation, experiment.calibration), tuple(values), {"label": f"rung {bits}"})


def test_ladder_places_a_value_between_its_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder.recorded, "ladder", lambda: ())
    rungs = [rung(4, 0.04), rung(3, 0.16), rung(2, 0.64)]
    assert ladder.place("kld_mean", 0.08, rungs) == (pytest.approx(3.75), "") and ladder.place("kld_mean", 0.16, rungs) == (pytest.approx(3.25), "")
    more, fewer = (4.25, "more"), (2.25, "fewer")
    assert [ladder.place("kld_mean", value, rungs) for value in (0.001, 5.0, -0.1)] == [more, fewer, more] and ladder.place("kld_mean", 0.04, rungs).end == ""
    assert ladder.place("top1_agreement", 84.0, rungs) == (pytest.approx(3.25), "") and ladder.place("kld_mean", 0.1, rungs[:1]) is None
    assert ladder.rungs_for(REPORTS[2], rungs[::-1]) == rungs and ladder.rungs_for(rung(4, 0.1)) == []
    finest = rung(8, -0.0002)
    plot, named = ladder.draw([REPORTS[2], *rungs, finest], ""), ladder.summary([*rungs, finest], "")
    marks = plot["data"][-1]
    assert marks["marker"]["symbol"][1] == "triangle-right-open" and "4.25 bits or more, not measurable" in marks["customdata"][1]
    assert "Hollow: " in named and f"{finest.name}, not measurable in perplexity change (4.25 bits or more)" in named
    drawn = [trace for trace in plot["data"] if any(symbol.endswith("-open") for symbol in trace["marker"]["symbol"])]
    said = ladder.summary([REPORTS[2], *rungs, finest], "")
    assert len(drawn) > 1 and all(trace["name"] in said.partition("Hollow: ")[2] for trace in drawn), "every hollow mark is named"
    assert plot["layout"]["xaxis"]["ticktext"][1:] == ["4.25<br>RTN 4", "3.25<br>RTN 3", "2.25<br>RTN 2"]
    assert "No ladder" in ladder.summary([REPORTS[0], REPORTS[3]], "") and "plain rounding at" in ladder.summary([*REPORTS[:4], *rungs], "")


def test_further_parameters_are_axes_of_the_methods_that_have_them() -> None:
    further = {"symmetric": ["true", "False"], "rotate": ["true"], "damping": ["0.02"]}
    found = [one for one in grid(catalogue(), ["gptq", "rtn", "nf4"], [4], [64], further) if one.method != "none"]
    assert [one.method for one in found] == ["rtn", "rtn", "nf4", "gptq", "gptq"]
    assert {dict(one.params)["symmetric"] for one in found if one.method == "rtn"} == {True, False}
    for one in found:
        build(one.method, dict(one.params))
    for wrong, sentence in (({"symmetric": ["maybe"]}, "False, True"), ({"alpha": ["0.5"]}, "none of these methods"), ({"damping": ["9"]}, "0.0001 to 1")):
        with pytest.raises(InputError, match=sentence):
            grid(catalogue(), ["gptq"], [4], [64], wrong)
    unused = grid(catalogue(), ["smoothquant"], [8], [64], {"activation": ["token"], "granularity": ["tensor"]})
    assert len(unused) == 2
    runs = sweep.drawn(found, [0, 1, 1])
    assert [draw["seed"] for one, draw in runs if one.method == "gptq"] == [0, 1, 0, 1] and len(runs) == 7, "what reads no text runs once"
    assert sweep.drawn(found, []) == [(one, {}) for one in found]
    with pytest.raises(InputError, match="fewer configurations or seeds"):
        sweep.drawn(found, list(range(101)))


def test_sweep_command_tells_the_spread_over_seeds_and_when_speeds_were_measured(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["sweep", "--model", str(tiny_folder), "--methods", "gptq", "--bits", "3", "--group-size", "32", "--seeds", "0,1", "--damping", "0.02"]
    argv += ["--sequences", "1", "--tokens", "256", "--length", "64", "--kv-bits", "8", "--store", str(tmp_path / "r.db")]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    base, first, second = csv.DictReader(io.StringIO(out))
    assert (base["seed"], first["seed"], second["seed"]) == ("", "0", "1") and first["kv_bits"] == "8" and base["kv_bits"] == "16"
    assert "damping=0.02" in first["params"] and first["length"] == "64" and first["sequences"] == "1"
    klds = [float(row["kld_mean_nats"]) for row in (first, second)]
    assert klds[0] != klds[1] and float(first["kld_mean_nats_seeds_mean"]) == pytest.approx(sum(klds) / 2)
    assert float(second["kld_mean_nats_seeds_sd"]) == pytest.approx(abs(klds[0] - klds[1]) / 2**0.5) and not base["kld_mean_nats_seeds_sd"]
    assert "over 2 seeds: kld_mean_nats" in err and "were not measured in this sweep" not in err and first["speed_origin"].startswith("measured now, 20")
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "3 of 3 speeds were not measured in this sweep" in err and all(
        row["speed_origin"].startswith("stored, 20") for row in csv.DictReader(io.StringIO(out))
    )
    assert main([*argv, "--remeasure", "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["rows"]
    assert "were not measured" not in err and {row["speed_origin"].split(",")[0] for row in rows} == {"measured now"}
    assert {row["origin"].split(",")[0] for row in rows} == {"stored"} and rows[1]["decode_latency_p50_seconds"] != float(first["decode_latency_p50_seconds"])
    again = ["run", "--model", str(tiny_folder), "--method", "gptq", "--bits", "3", "--group-size", "32", "--damping", "0.02", "--seed", "1", *argv[13:]]
    assert main(again) == 0
    out = capsys.readouterr().out
    assert "origin of speed              stored" in out and f"{rows[2]['kld_mean_nats']:,.6g}" in out
