"""Every figure on no report, on one, on all, on one that holds NaN; small payloads; a summary in words. The table escapes names."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics

import pytest

from explorer.figures import Chart, Figure, _found, charts, figures
from explorer.planner import Plan, need
from explorer.presets import presets
from explorer.recorded import SEEDS
from explorer.records import Measurement, ModelRef, QuantSpec, Report, report_from, significant
from explorer.table import comparison
from explorer.ui.session import COMPARED, Shelf, arrange, keys_of, usual
from explorer.ui.written import samples

ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]
LAYER = "layers.3.mlp.down_proj"


def broken(report: Report) -> Report:
    """The same report with every number NaN and every list of numbers holding one."""

    def spoil(m: Measurement) -> Measurement:
        if isinstance(m.value, float | int):
            return dataclasses.replace(m, value=math.nan, low=math.nan, high=math.nan, bad=3)
        return dataclasses.replace(m, value=[math.nan, *m.value[1:]]) if m.metric == "activation_absmax" else m

    return dataclasses.replace(report, measurements=tuple(map(spoil, report.measurements)))


@pytest.mark.parametrize("figure", figures().values(), ids=lambda f: f.name)
@pytest.mark.parametrize("reports", [[], ALL[:1], ALL[1:2], ALL, [broken(ALL[0]), broken(ALL[1])]], ids=["none", "baseline", "one", "all", "nan"])
def test_figure_draws(figure, reports: list[Report]) -> None:
    go = pytest.importorskip("plotly.graph_objects", reason="needs plotly to validate the figure")
    drawn = figure.draw(reports, LAYER)
    go.Figure(drawn)
    assert drawn["layout"]["height"] >= 300
    assert len(json.dumps(drawn)) < 150_000
    assert figure.summary(reports, LAYER).endswith(".")
    assert figure.see.endswith(".") and len(figure.why) > 100


@pytest.mark.parametrize("chart", charts().values(), ids=lambda c: c.name)
@pytest.mark.parametrize("full", [False, True], ids=["nothing", "example"])
def test_chart_draws(chart, full: bool) -> None:
    go = pytest.importorskip("plotly.graph_objects", reason="needs plotly to validate the figure")
    data = chart.example if full else {}
    drawn = chart.draw(data)
    go.Figure(drawn)
    assert drawn["layout"]["height"] >= (300 if full else 220) and bool(drawn["data"]) == full
    assert len(json.dumps(drawn, allow_nan=False)) < 150_000
    assert chart.summary(data).endswith(".") and chart.see.endswith(".") and len(chart.why) > 100


@pytest.mark.parametrize("figure", figures().values(), ids=lambda f: f.name)
def test_figure_needs_are_measured(figure) -> None:
    measured = {m.metric for report in ALL for m in report.measurements}
    assert set(figure.needs) <= measured | {"training_loss"}


def test_a_70b_keeps_as_much_in_16_bits_as_the_memory_figure_says() -> None:
    """Embedding and head of Llama 3.1 70B, as a share of all bytes in 16 bits, and once the blocks have 4.25 bits a weight."""
    model = presets()["llama-3.1-70b"]
    for bits, said in ((16, "3% of the bytes in 16 bits"), (4, "10% once")):
        weights = need(model, Plan(bits=bits, group=64)).weights
        share = 100 * (weights["embedding"] + weights["output head"]) / sum(weights.values())
        assert said in figures()["memory"].why and said.startswith(f"{share:.0f}%")


def test_memory_says_at_how_many_tokens_and_shows_copies_where_there_are_some() -> None:
    copied = dataclasses.replace(ALL[1], measurements=(*ALL[1].measurements, Measurement("memory_copies", 2.0**20, "bytes")))
    length, drawn = ALL[0].find("memory_kv_cache").n, [figures()["memory"].draw(reports, "")["data"] for reports in (ALL[:2], [ALL[0], copied])]
    assert [bar["name"] for bar in drawn[0]][-1] == f"KV cache at {length:,} tokens" and "full context" not in figures()["memory"].why
    assert len(drawn[1]) == len(drawn[0]) + 1 and drawn[1][-1]["x"] == [0, 1] and drawn[1][-1]["name"] == "16-bit copies of weights"
    assert f"one sequence of {length:,} tokens" in figures()["memory"].summary(ALL[:2], "")


def test_table_tells_a_difference_from_noise() -> None:
    html = comparison(ALL)
    assert "batch sweep" in html and "batch sweep" not in comparison(ALL, live=False)
    assert html.count("<th scope='col'") == 2 * (len(ALL) + 1) and "no measurable change" in html and "95% intervals" in html
    assert "not finite" in comparison([broken(ALL[0])]) and "No results yet" in comparison([])


def test_small_divergences_keep_three_digits() -> None:
    shown = [significant(value) for value in (0.000493, 0.0397, 4.6899, 0.0, 1234.5, math.nan)]
    assert shown == ["0.000493", "0.0397", "4.69", "0", "1,234", "nan"] and significant(0.0000218, 0.000493) == "0.000022"
    eight = next(r for r in ALL if r.experiment.spec.get("bits") == 8).find("kld_mean")
    assert f"{significant(eight.low, eight.value)} to {significant(eight.high, eight.value)}" in comparison(ALL) and eight.low < eight.high < 0.001


def test_a_verdict_names_the_configuration_whose_perplexity_is_higher() -> None:
    chart = charts()["difference"]
    text = chart.summary(chart.example)
    assert "GPTQ 4-bit g64 is better than RTN 4-bit g64" in text and "RTN 4-bit g64's perplexity is 0.40% to 4.90% higher" in text
    other = chart.summary({"looks": [{"tokens": 960, "difference": -2.0, "low": -3.0, "high": -1.0}], "names": ["A", "B"], "verdict": "first"})
    assert "A's perplexity is 1.00% to 3.00% lower" in other


def test_layers_that_cannot_be_told_apart_are_not_told_from_themselves() -> None:
    chart = charts()["sensitivity_ranking"]
    rows = [row | {"kld_low": row["kld"] * 0.9, "kld_high": row["kld"] * 1.1} for row in chart.example["rows"]]
    near = rows[0] | {"layer": "layers.0.mlp.up_proj", "kld": 0.0195, "kld_low": 0.019, "kld_high": 0.02}
    assert "0 v_proj and 0 up_proj cannot be told apart; from 1 down_proj on" in chart.summary({"rows": [*rows, near], "width": 3})
    assert "0 v_proj is the most sensitive; from 1 down_proj on" in chart.summary({"rows": rows, "width": 3})


def test_layers_are_ranked_by_their_difference_in_each_window() -> None:
    """Their intervals overlap, and one of them is less sensitive in every window."""
    chart = charts()["sensitivity_ranking"]
    one = chart.example["rows"][0]
    windows = [0.01, 0.02, 0.03, 0.02]
    first, less, same = ([w + move for w, move in zip(windows, moves, strict=True)] for moves in ([0] * 4, [-0.001, -0.0012] * 2, [-0.001, 0.0009] * 2))
    rows = [
        one | {"layer": f"layers.{i}.mlp.up_proj", "kld": statistics.fmean(w), "kld_low": 0.007, "kld_high": 0.033, "kld_windows": w}
        for i, w in enumerate((first, same, less))
    ]
    words = chart.summary({"rows": rows, "width": 3})
    assert "Paired by window, 0 up_proj and 1 up_proj cannot be told apart; from 2 up_proj on" in words
    bare = [{name: value for name, value in row.items() if name != "kld_windows"} for row in rows]
    assert "By their intervals, no layer is measurably less sensitive than 0 up_proj" in chart.summary({"rows": bare, "width": 3})


def test_every_value_of_an_8_bit_grid_is_drawn() -> None:
    eight = next(r for r in ALL if r.experiment.spec.get("bits") == 8)
    ticks = next(trace for trace in figures()["weights"].draw([eight], LAYER)["data"] if trace["name"].startswith("grid"))
    assert len(ticks["x"]) == 255, "all but the lowest code, which no weight takes"


def test_token_times_have_ticks_between_powers_of_ten() -> None:
    assert figures()["speed"].draw(ALL, "")["layout"]["xaxis"]["dtick"] == "D2"


@pytest.mark.parametrize("name", ["quality", "divergence"])
def test_an_axis_within_a_decade_has_numbers(name: str) -> None:
    """A tick at every power of ten, where there are two; within a decade Plotly chooses, else there would be none."""
    assert "dtick" not in figures()[name].draw([ALL[0], ALL[2]], "")["layout"]["yaxis"] and figures()[name].draw(ALL, "")["layout"]["yaxis"]["dtick"] == 1
    assert "dtick" not in figures()[name].draw([ALL[0]], "")["layout"]["yaxis"]


def test_names_and_texts_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    experiment = dataclasses.replace(ALL[1].experiment, model=ModelRef(evil, evil), spec=QuantSpec.of(evil, bits=4))
    report = Report(experiment, (Measurement("sample_text", evil),), {"device": evil, "kernel_summary": evil, "prompt": evil, "text": evil})
    assert "<img" not in comparison([report]) + samples([report])


def variant(bits: int, model: str = "demo", method: str = "rtn") -> Report:
    experiment = dataclasses.replace(ALL[1].experiment, model=ModelRef(model, "r"), spec=QuantSpec.of(method, bits=bits))
    return Report(experiment, (), {"label": f"{method} {bits}"})


def test_page_keeps_a_baseline_and_four() -> None:
    base = variant(16, method="none")
    page: list[Report] = []
    for bits in (2, 3, 4, 5):
        page, left = arrange(page, variant(bits))
        assert not left
    page, left = arrange(page, base)
    assert [r.name for r in page] == ["none 16", "rtn 2", "rtn 3", "rtn 4", "rtn 5"] and not left and COMPARED == 4
    again, left = arrange(page, variant(3))
    assert [(r.name, r.experiment) for r in again] == [(r.name, r.experiment) for r in page] and not left
    more, left = arrange(page, variant(6))
    assert [r.name for r in more] == ["none 16", "rtn 6", "rtn 3", "rtn 4", "rtn 5"], "the others keep their places, and so their colours"
    assert left.startswith("rtn 2 left the page")
    other, left = arrange(page, variant(4, "another"))
    assert [r.experiment.model.name for r in other] == ["another"] and "another model" in left


def test_a_full_page_loses_what_this_visitor_ran_first() -> None:
    shelf = Shelf([])
    page: list[Report] = []
    for bits in (2, 3, 4, 5, 6, 7, 2, 3):
        page, left = shelf.arrange(page, variant(bits))
    assert [r.name for r in page] == ["rtn 6", "rtn 7", "rtn 2", "rtn 3"] and left.startswith("rtn 5 left")
    assert usual(page, shelf.age) == keys_of(page)[3]
    page, left = shelf.arrange(page, variant(6))
    assert not left and usual(page, shelf.age) == keys_of(page)[0], "the newest run, wherever it stands"


def test_answers_that_were_lost_are_no_negative_numbers() -> None:
    chart = charts()["choices"]
    axis = chart.draw({"rows": [chart.example["rows"][0] | {"lost": 37}]})["layout"]["xaxis"]
    assert "-" not in "".join(axis["ticktext"]) and min(axis["tickvals"]) <= -37 and len(axis["tickvals"]) < 13


def test_gptq_is_only_spoken_of_where_it_is() -> None:
    figure = figures()["layers"]
    assert "GPTQ" not in figure.see + figure.summary([r for r in ALL if r.experiment.spec.method != "gptq"], "")
    plain, gptq = (next(r for r in ALL if r.name == f"{name} 4-bit g64") for name in ("RTN", "GPTQ"))
    ratios = [statistics.median(gptq.by_layer(m)[layer] / value for layer, value in plain.by_layer(m).items()) for m in ("weight_error", "output_error")]
    assert f"{ratios[0]:.2f} times the weight error of RTN 4-bit g64 and {ratios[1]:.2f} times its output error" in figure.summary(ALL, "")


def test_a_view_of_one_starts_with_a_sound_configuration() -> None:
    recorded = [dataclasses.replace(report, provenance={**report.provenance, "recorded": True}) for report in ALL]
    assert ALL[-1].name == "RTN 2-bit g64" and usual(recorded) == recorded[3].key and ALL[3].name == "GPTQ 4-bit g64"
    assert usual([*recorded[:4], ALL[-1]]) == keys_of(ALL[-1:])[0], "what a person has just run comes first"
    assert usual(recorded[:1]) == "" and usual([broken(report) for report in recorded]) == recorded[-1].key


def test_shelf_forgets_the_oldest_but_never_the_seeds() -> None:
    shelf = Shelf(ALL[:1], size=2)
    keys = [shelf.add(report) for report in ALL[1:]]
    assert shelf.pick(keys) == ALL[-2:] and shelf.first() == ALL[:1] and shelf.pick(keys_of(ALL[:1])) == ALL[:1]
    assert shelf.pick(["no", "such", "keys"]) == []
    assert shelf.with_baseline(ALL[-1:]) == [ALL[0], ALL[-1]] and shelf.with_baseline(ALL) == ALL
    assert shelf.with_baseline([variant(4)]) == [variant(4)], "no baseline of that model is known"


@pytest.mark.parametrize(("kind", "known"), [(Figure, figures), (Chart, charts)], ids=["figures", "charts"])
def test_no_two_have_one_name(kind: type, known) -> None:
    """A second one of a name would silently take the first one's place on the page."""
    assert len({id(item) for item in _found(kind)}) == len(known())


def test_no_tick_is_drawn_for_a_code_that_no_weight_takes() -> None:
    """Absmax scaling at symmetric 2 bits uses three of four codes."""
    two = next(r for r in ALL if r.experiment.spec.get("bits") == 2)
    ticks = next(trace for trace in figures()["weights"].draw([two], LAYER)["data"] if trace["name"].startswith("grid"))
    assert len(ticks["x"]) == 3 and ticks["x"][0] == -ticks["x"][2]


def test_more_bits_are_the_stronger_colour() -> None:
    widths = [2, 3, 4, 5, 6, 7, 8, 16]
    assignment = {f"layers.{i}.mlp.down_proj": bits for i, bits in enumerate(widths)}
    scale = charts()["allocation_map"].draw({"assignment": assignment})["data"][0]["colorscale"]
    hues, strengths = zip(*(colour.rstrip(")").rsplit(",", 1) for _, colour in scale), strict=True)
    assert len(set(hues)) == 1 and list(map(float, strengths)) == sorted(map(float, strengths)) and len(set(strengths)) == len(widths)
