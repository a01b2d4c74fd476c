"""The whole path on real models: events, the ladder of bits, cancelling, caching, skipped layers, honest counting of NaN."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from pathlib import Path

import pytest
import torch

from explorer import data, models
from explorer.answers import place
from explorer.experiment import LocalRunner, last_report, metric_key, run
from explorer.findings import drowned
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.metrics import mean_interval, metrics, quantile_interval
from explorer.metrics.quality import summarise, token_statistics
from explorer.models import linears
from explorer.qlinear import QuantizedLinear
from explorer.records import InputError, Measurement, Progress, Report
from explorer.store import Store
from tests.measuring import ON_CPU, measuring

CPU, GROUP = torch.device("cpu"), {"granularity": "group", "group_size": 64}
FEW = {"tokens": 1024, "length": 256}  # of random weights any text says as much


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(CPU)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, loader: Loader) -> dict[str, Report]:
    """Reports on the demo model, one a configuration, from one store; what differs does so on half the text that a run reads by itself."""
    kept = Store(tmp_path_factory.mktemp("store") / "r.db")
    runner = LocalRunner(kept, loader)
    wanted = {
        "none": ("none", {}),
        "rtn8": ("rtn", {"bits": 8, "granularity": "channel"}),
        "rtn4": ("rtn", {"bits": 4, **GROUP}),
        "rtn2": ("rtn", {"bits": 2, **GROUP}),
        "rtn2tensor": ("rtn", {"bits": 2, "granularity": "tensor"}),
        "rtn3": ("rtn", {"bits": 3, **GROUP}),
        "gptq3": ("gptq", {"bits": 3, **GROUP}),
    }
    few = {"tokens": 4096, "sequences": 8}
    reports = {name: last_report(runner.run("demo", *wanted.pop(name), **few)) for name in ("none", "rtn4")}  # whole
    with measuring("activations", "layers", "quality", "size"):
        reports |= {name: last_report(runner.run("demo", *chosen, **few)) for name, chosen in wanted.items()}
    kept.close()
    return reports


def test_fewer_bits_cost_more_beyond_the_intervals(demo: dict[str, Report]) -> None:
    for better, worse in (("rtn8", "rtn4"), ("rtn4", "rtn3"), ("rtn3", "rtn2"), ("rtn2", "rtn2tensor")):
        assert demo[better].find("kld_mean").high < demo[worse].find("kld_mean").low
    for better, worse in (("rtn4", "rtn3"), ("rtn3", "rtn2")):
        assert demo[better].find("perplexity_delta").high < demo[worse].find("perplexity_delta").low
    assert abs(demo["rtn8"].value("perplexity_delta")) < 0.5


def test_gptq_beats_rounding_on_held_out_text(demo: dict[str, Report]) -> None:
    assert demo["gptq3"].find("kld_mean").high < demo["rtn3"].find("kld_mean").low
    weight = {name: sum(demo[name].by_layer("weight_error").values()) for name in ("gptq3", "rtn3")}
    output = {name: sum(demo[name].by_layer("output_error").values()) for name in ("gptq3", "rtn3")}
    assert weight["gptq3"] > weight["rtn3"] and output["gptq3"] < output["rtn3"]


def test_baseline_is_the_reference(demo: dict[str, Report]) -> None:
    base = demo["none"]
    assert base.value("perplexity_delta") == 0 and base.value("kld_mean") == 0 and base.value("top1_agreement") == 100
    assert base.value("bits_per_weight") == 16 and base.value("memory_codes") == 0


def test_memory_measured_agrees_with_memory_computed(demo: dict[str, Report]) -> None:
    report = demo["rtn4"]
    assert report.value("bits_per_weight") == 4.25
    weights = 6 * (384 * 384 * 2 + 2 * 128 * 384 + 3 * 384 * 1024)
    assert report.value("memory_codes") == weights / 2
    assert report.value("memory_codes") + report.value("memory_scales") + report.value("memory_kept") == report.value("weight_bytes")
    assert demo["none"].value("weight_bytes") - report.value("memory_kept") == 2 * weights


def test_every_layer_names_the_kernel_that_ran(demo: dict[str, Report]) -> None:
    kernels = demo["rtn4"].provenance["kernels"]
    assert len(kernels) == 42 and set(kernels.values()) == {f"int4_matmul ({ON_CPU})"}
    assert set(demo["rtn8"].provenance["kernels"].values()) == {f"int8_matmul ({ON_CPU})"}


def test_every_number_has_its_circumstances(demo: dict[str, Report]) -> None:
    for name in ("device", "torch", "kernel_summary", "text", "date", "prompt"):
        assert demo["rtn4"].provenance[name]
    speed = demo["rtn4"].find("decode_tokens_per_second")
    assert speed.n > 50
    for report in demo.values():
        for m in report.measurements:
            assert m.low is None or m.low <= m.value <= m.high, (report.name, m.metric, m.layer)
    assert demo["rtn4"].find("decode_limit").how == "estimated"


def test_activation_statistics_do_not_depend_on_the_method(demo: dict[str, Report]) -> None:
    pick = ("activation_absmax", "layers.3.mlp.down_proj")
    assert demo["rtn4"].value(*pick) == demo["gptq3"].value(*pick) and len(demo["rtn4"].value(*pick)) == 1024


def test_closing_leaves_the_model_whole_and_nothing_half_stored(store: Store, loader: Loader, tiny_folder: Path) -> None:
    """Closes the run after 1, 8, 15, ... events, until one run gets to its report."""
    runner = LocalRunner(store, loader)
    asked = (str(tiny_folder), "rtn", {"bits": 3, "granularity": "channel"})
    for stop_after in range(1, 1000, 7):
        events = runner.run(*asked, **FEW)
        seen = list(itertools.islice(events, stop_after))
        events.close()
        if loader._last:
            assert not any(isinstance(layer, QuantizedLinear) for layer in linears(loader._last.model).values())
        if isinstance(seen[-1], Report):
            break
    assert stop_after > 7 and isinstance(seen[-1], Report)
    assert last_report(runner.run(*asked, **FEW)).provenance["from_store"]


def test_second_run_waits_its_turn_but_not_for_what_is_stored(store: Store, loader: Loader, tiny_folder: Path) -> None:
    runner = LocalRunner(store, loader)
    known = last_report(runner.run(str(tiny_folder), "nf4", {"group_size": 32}, **FEW))
    first = runner.run(str(tiny_folder), "rtn", {"bits": 5, "granularity": "channel"}, **FEW)
    assert next(first).stage == "load model"
    second = runner.run(str(tiny_folder), "rtn", {"bits": 6, "granularity": "channel"}, **FEW)
    same = runner.run(str(tiny_folder), "rtn", {"bits": 5, "granularity": "channel"}, **FEW)
    assert (next(second).detail, next(same).detail) == ("1 experiment ahead in line", "2 experiments ahead in line")
    assert last_report(runner.run(str(tiny_folder), "nf4", {"group_size": 32}, **FEW)).measurements == known.measurements
    report = last_report(first)
    second.close()
    assert last_report(same).measurements == report.measurements, "what was measured while it waited is not measured again"


def test_short_text_is_a_sentence(store: Store, loader: Loader, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="too short"):
        last_report(LocalRunner(store, loader).run(str(tiny_folder), "rtn", {}, evaluation="pasted", text="A few words."))


def test_calibration_is_part_of_the_experiment(store: Store, loader: Loader, tiny_folder: Path) -> None:
    """Other windows of the calibration text are another experiment with another result; a method that reads none is not measured again."""
    ask = lambda method, **options: last_report(  # noqa: E731
        LocalRunner(store, loader).run(str(tiny_folder), method, {"bits": 3, "group_size": 32}, sequences=2, tokens=2048, **options)
    )
    first, other = ask("gptq"), ask("gptq", seed=7)
    assert first.value("kld_mean") != other.value("kld_mean") and not other.provenance["from_store"]
    assert "2,048 tokens in windows of 1024, seed 7" in other.provenance["calibration"]
    rounded = ask("rtn")
    assert not rounded.provenance["from_store"] and ask("rtn", seed=7).provenance["from_store"]
    assert [r.provenance["reads_inputs"] for r in (first, rounded)] == [True, False] and rounded.provenance["calibration"] == "none read"


@pytest.mark.parametrize("options", [{"calibration": "pasted", "evaluation": "pasted", "text": "x"}, {"sequences": 0}, {"sequences": 1.5}, {"seed": -1}])
def test_impossible_calibration_is_a_sentence(store: Store, loader: Loader, tiny_folder: Path, options: dict) -> None:
    with pytest.raises(InputError, match=r"at once|takes 1 to"):
        last_report(LocalRunner(store, loader).run(str(tiny_folder), "gptq", {}, **options))


def test_keys_tell_text_method_and_device_apart(tiny_folder: Path) -> None:
    from explorer.records import Experiment, ModelRef, QuantSpec, TextRef

    text, other = TextRef("bundled", "a", 1, 1), TextRef("bundled", "b", 1, 1)
    make = lambda spec, evaluation, calibration: Experiment(ModelRef("m", "r"), spec, evaluation, calibration)  # noqa: E731
    quality, activations = metrics()["quality"], metrics()["activations"]
    rtn, gptq = QuantSpec.of("rtn", bits=4), QuantSpec.of("gptq", bits=4)
    key = lambda metric, *parts: metric_key(make(*parts), metric, CPU)  # noqa: E731
    assert key(quality, rtn, text, text) != key(quality, rtn, other, text)
    assert key(quality, rtn, text, text) == key(quality, rtn, text, other), "rtn reads no calibration text"
    assert key(quality, gptq, text, text) != key(quality, gptq, text, other)
    dynamic, static = (QuantSpec.of("llm_int8", threshold=6.0, outliers=kind) for kind in ("dynamic", "static"))
    assert key(quality, dynamic, text, text) == key(quality, dynamic, text, other) and key(quality, static, text, text) != key(quality, static, text, other)
    assert key(activations, gptq, text, text) == key(activations, rtn, text, other)


def by_window(tokens: dict[str, torch.Tensor], windows: int = 10) -> dict[str, Measurement]:
    """Measurements by metric from per-token statistics cut into windows of equal length."""
    return {m.metric: m for m in summarise({name: values.view(windows, -1) for name, values in tokens.items()})}


def test_nan_is_counted_and_never_averaged() -> None:
    torch.manual_seed(0)
    reference, targets = torch.randn(640, 11), torch.randint(0, 11, (640,))
    broken = reference + 0.1 * torch.randn(640, 11)
    clean = by_window(token_statistics(reference, broken, targets))
    broken[5] = torch.nan
    broken[9, 3] = torch.inf
    tokens = token_statistics(reference, broken, targets)
    found, one = by_window(tokens), by_window(tokens, 1)
    assert found["perplexity"].bad == 2 and found["perplexity"].n == 638
    assert math.isclose(found["kld_mean"].value, clean["kld_mean"].value, rel_tol=0.02)
    nothing = by_window(token_statistics(reference, broken * torch.nan, targets))
    assert math.isnan(nothing["perplexity"].value) and nothing["perplexity"].bad == 640
    for few in (one, nothing):
        assert all(m.low is None and m.high is None for m in few.values()), "of fewer than two windows there is no interval"
    for m in found.values():
        assert m.metric in ("kld_max", "clear_flips", "kld_windows", "nll_delta_windows") if m.low is None else m.low <= m.value <= m.high, m.metric


def test_windows_are_kept_as_they_are_averaged() -> None:
    torch.manual_seed(0)
    reference, targets = torch.randn(640, 11), torch.randint(0, 11, (640,))
    broken = reference + 0.1 * torch.randn(640, 11)
    found = by_window(token_statistics(reference, broken, targets))
    for windows, mean in (("kld_windows", found["kld_mean"].value), ("nll_delta_windows", math.log1p(found["perplexity_delta"].value / 100))):
        assert len(found[windows].value) == 10 and statistics.fmean(found[windows].value) == pytest.approx(mean, rel=1e-6) and found[windows].unit == "nats"
    again = mean_interval(torch.tensor(found["kld_windows"].value, dtype=torch.float64).unsqueeze(1))
    assert again == pytest.approx((found["kld_mean"].value, found["kld_mean"].low, found["kld_mean"].high))
    broken[:64], broken[70] = torch.nan, torch.nan
    lost = by_window(token_statistics(reference, broken, targets))["kld_windows"]
    assert math.isnan(lost.value[0]) and lost.bad == 65 and lost.value[1] != found["kld_windows"].value[1]
    assert lost.value[2:] == pytest.approx(found["kld_windows"].value[2:])


def test_the_correct_tokens_probability_by_hand() -> None:
    """Two tokens, the correct one's probability from 1/2 to 3/4 and to 1/4 in turn: no mean change, an RMS of 25 points."""
    reference = torch.zeros(640, 2)
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().repeat(320, 1)
    found = by_window(token_statistics(reference, logits, torch.zeros(640, dtype=torch.long)))
    mean, rms = found["p_correct_change"], found["p_correct_rms"]
    assert abs(mean.value) < 1e-4 and rms.value == pytest.approx(25) and rms.unit == "percentage points"
    worse = by_window(token_statistics(reference, logits[1:2].expand(640, 2), torch.zeros(640, dtype=torch.long)))
    assert worse["p_correct_change"].value == pytest.approx(-25) and found["top1_agreement"].low is None, "windows all alike say nothing of others"


def test_the_interval_by_hand() -> None:
    """Three windows with means 1, 2 and 6: 3 and t of 2 degrees of freedom times their standard error; a value less in one weighs it less."""
    half = 4.30265 * (7 / 3) ** 0.5
    assert mean_interval(torch.tensor([[0.0, 2.0], [1.0, 3.0], [5.0, 7.0]])) == pytest.approx((3, 3 - half, 3 + half), rel=1e-5)
    assert mean_interval(torch.tensor([[0.0, 2.0], [1.0, 3.0], [6.0, torch.nan]]))[0] == pytest.approx(12 / 5)
    alone = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    assert mean_interval(alone) == (1.5, None, None) and quantile_interval(alone, 0.5) == (1.5, None, None)


def test_95_percent_means_95_percent() -> None:
    """A text whose tokens follow each other and whose pages differ, like the divergence on the bundled one: 16 of its 98 windows drawn at random hold
    the whole text's mean, median and 99th percentile as often as they say; the first method here, means of 64 tokens, did so in 51% of all runs.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(98 * 64 + 200, generator=generator)
    text = (noise.unfold(0, 201, 1).mean(-1) * 3 + torch.randn(98 * 64, generator=generator)).exp().view(98, 64)
    whole = text.mean().item(), text.quantile(0.5).item(), text.quantile(0.99).item()
    hits = [0, 0, 0]
    for _ in range(400):
        drawn = text[torch.randint(98, (16,), generator=generator)]
        found = mean_interval(drawn), quantile_interval(drawn, 0.5), quantile_interval(drawn, 0.99)
        hits = [hit + (low <= true <= high) for hit, true, (_, low, high) in zip(hits, whole, found, strict=True)]
    assert all(0.92 <= hit / 400 <= 0.99 for hit in hits), hits


def test_windows_are_drawn_at_random_and_the_same_for_all(loader: Loader) -> None:
    loaded = loader(models.resolve("demo", Hub()))
    text = data.bundled_text("evaluation")
    whole, have = models.drawn(loaded, text, 10**9, 512)
    rows, _ = models.drawn(loaded, text, 8192, 512)
    in_order = models.windows(loaded, text, 10**9, 512)
    assert len(whole) == have == len(in_order) == 98 and torch.equal(rows, whole[:16]), "fewer tokens take the first of the same draw"
    places = [int((in_order == row).all(1).nonzero()) for row in rows]
    assert len(set(places)) == 16 and places != sorted(places) and max(places) - min(places) > 49


def test_the_noise_of_bfloat16_is_measured_and_leaves_the_model_alone(demo: dict[str, Report], loader: Loader) -> None:
    floor = demo["none"].find("kld_floor")
    assert 1e-4 < floor.low < floor.value < floor.high < 4e-4 and demo["rtn4"].find("kld_floor") == floor
    assert demo["none"].provenance["text"].endswith("8 of 98 windows of 512 tokens, drawn at random (seed 0), no overlap")
    assert drowned(demo["none"]) is None and drowned(demo["rtn4"]) is None
    near = [dataclasses.replace(m, value=1.9 * floor.value) if m.metric == "kld_mean" else m for m in demo["rtn4"].measurements]
    lost = dataclasses.replace(demo["rtn4"], measurements=tuple(near))
    assert drowned(lost) == floor and "cannot be told from rounding to bfloat16" in place(lost, [])
    assert all(p.dtype == torch.bfloat16 for p in loader(models.resolve("demo", Hub())).model.parameters())


def test_events_are_progress_then_measurements_then_one_report(store: Store, loader: Loader, tiny_folder: Path) -> None:
    events = list(LocalRunner(store, loader).run(str(tiny_folder), "nf4", {"group_size": 32}, **FEW))
    assert isinstance(events[0], Progress) and isinstance(events[-1], Report)
    assert sum(isinstance(e, Report) for e in events) == 1
    streamed = {(m.metric, m.layer) for m in events if isinstance(m, Measurement)}
    assert streamed == {(m.metric, m.layer) for m in events[-1].measurements}
    assert run.__doc__


def test_training_lowers_the_loss_and_leaves_the_model_whole(store: Store, loader: Loader, tiny_folder: Path) -> None:
    """QAT on a few windows: the curve falls, the result beats its own starting point, and a closed run puts every layer back."""
    runner = LocalRunner(store, loader)
    options = {"bits": 2, "group_size": 32, "rate": 1e-3}
    long, short = (last_report(runner.run(str(tiny_folder), "qat", {**options, "steps": steps}, sequences=2, **FEW)) for steps in (30, 1))
    losses = long.value("training_loss")
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0] and short.value("training_loss") == losses[:1]
    assert long.value("weight_error", "layers.0.self_attn.q_proj") is not None
    events = runner.run(str(tiny_folder), "qat", {**options, "steps": 29}, sequences=2, **FEW)
    while next(events).stage != "train":
        pass
    next(events)
    events.close()
    assert all(isinstance(layer, torch.nn.Linear) for layer in linears(loader._last.model).values())
