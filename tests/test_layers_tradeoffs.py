"""Handlers of Layers and Trade-offs over a fake runner: what streams, what joins Compare, what is refused with a sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import gradio as gr
import pytest

from explorer.docs import CATALOGUE
from explorer.recorded import SEEDS, survey
from explorer.records import Answer, InputError, Measurement, ModelRef, Progress, Report, report_from
from explorer.ui.asking import configuration
from explorer.ui.session import Shelf, keys_of, seats
from explorer.ui.tab import Shell
from explorer.ui.tabs.layers.handlers import EVERY, FILES, Sensitivities
from explorer.ui.tabs.tradeoffs.handlers import Points, TabState

SEED = [report_from(entry) for entry in json.loads(SEEDS.read_text())]
METHODS = json.loads(CATALOGUE.read_text())["methods"]
OPTIONS = ("bundled", "", "bundled", 16, 0, 4, 8)


def row(layer: str, bits: int, kld: float) -> dict:
    return {"layer": layer, "bits": bits, "stored_bits": 100 * bits, "weights": 100, "kld": kld, "kld_low": kld / 2, "kld_high": 2 * kld, "delta": kld,
            "delta_low": 0.0, "delta_high": 1.0, "output_error": 0.1, "tokens": 2044, "bad": 0}  # fmt: skip


ROWS = [row(f"layers.{i}.mlp.up_proj", bits, (1 + 9 * i) * 4.0**-bits) for i in range(2) for bits in (2, 4)]


class FakeRunner:
    """Answers like a runner, from the seeds; raises `error` at the second event of a task."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked, self.closed = error, list[tuple](), 0

    def run(self, model: str, method: str, params: dict, **options: object) -> Iterator:
        self.asked.append((method, params, options))
        yield Progress("perplexity", 1, 4)
        yield SEED[0] if method == "none" else dataclasses.replace(SEED[2], experiment=dataclasses.replace(
            SEED[2].experiment, spec=dataclasses.replace(SEED[2].experiment.spec, method=method, params=tuple(sorted(params.items())))))  # fmt: skip

    def do(self, task: str, arguments: dict) -> Iterator:
        self.asked.append((task, arguments))
        try:
            yield Progress(task, 0, 2, "first")
            if self.error:
                raise self.error
            if task == "sensitivity":
                yield from (Measurement("sensitivity", one, layer=one["layer"]) for one in ROWS)
                yield Answer(task, {"model": "demo", "method": "rtn", "params": {"group_size": 64}, "rows": ROWS, "kept": {}, "label": "RTN"}, {"device": "d"})
            elif task == "sweep":
                yield from (SEED[0], SEED[2])
                yield Answer(task, {"done": 2, "failed": {"rtn bits=5": "It cannot."}, "seconds": 1.0})
            else:
                look = {"tokens": 960, "difference": 2.0, "low": 1.0, "high": 3.0}
                yield Measurement("difference", look)
                yield Answer(task, {"names": [], "looks": [look], "margin": 0.5, "verdict": "second"})
        finally:
            self.closed += 1


@pytest.fixture
def shell() -> Shell:
    return Shell(FakeRunner(), Shelf(SEED), METHODS, ["demo"])


def test_count_says_how_many_and_how_long(shell: Shell) -> None:
    points = Points(shell)
    assert "6 configurations of demo" in points.count("demo", ["rtn", "hqq"], [2, 3, 4], [64]) and "estimated" in points.count("demo", ["rtn"], [4], [64])
    assert "once the first are done" in points.count("other/model", ["rtn"], [4], [64])
    assert "Left out: hqq has no 7 bits." in points.count("demo", ["rtn", "hqq"], [4, 7], [64]) and "Left" not in points.count("demo", ["rtn"], [7], [64])
    assert "error" in points.count("demo", [], [4], [64]) and "error" in points.count("demo", ["rtn"], [], [64])


def test_a_sweep_draws_each_report_and_keeps_its_key(shell: Shell) -> None:
    points = Points(shell)
    outputs = list(points.sweep("demo", ["rtn"], [4], [64], "[]", "bits", "kld_mean", *OPTIONS))
    held = [output[-1] for output in outputs if isinstance(output[-1], str)]
    assert TabState.of(held[-1]).keys == tuple(keys_of([SEED[0], SEED[2]])) and "It cannot." in outputs[-1][0] and "done" in outputs[-1][0]
    assert shell.runner.asked[0][1]["options"]["kv_bits"] == 4 and shell.runner.closed == 1
    rows = points.table(held[-1]).split("<tr>")[2:]
    assert len(rows) == len(survey()) - 1 and sum("aria-label='recorded'" not in one for one in rows) == 1, "its own point stands for the recorded one"
    shell.runner.error = RuntimeError("<b>")
    assert "error" in (last := list(points.sweep("demo", ["rtn"], [4], [64], "[]", "bits", "kld_mean", *OPTIONS))[-1][0]) and "<b>" not in last
    refused = list(points.sweep("demo", [], [4], [64], "[]", "bits", "kld_mean", *OPTIONS))
    assert len(refused) == 1 and "No configuration is left" in refused[0][0]


def test_a_cancelled_sweep_is_closed(shell: Shell) -> None:
    events = Points(shell).sweep("demo", ["rtn"], [4], [64], "[]", "bits", "kld_mean", *OPTIONS)
    next(events)
    events.close()
    assert shell.runner.closed == 1


def test_a_row_joins_compare(shell: Shell) -> None:
    points = Points(shell)
    recorded = next(r for r in survey().values() if r.name == "GPTQ 3-bit g64")
    key, page = keys_of([recorded])[0], keys_of(SEED[:2])
    assert f"data-pick='report:{key}'" in points.table("[]")
    card = points.opened(key, "[]", page)
    assert "GPTQ 3-bit g64" in card and "16-bit baseline" in card and f"data-pick='compare:{key}'" in card
    said, compared, _ = points.compared(key, "[]", page, None)
    assert "GPTQ 3-bit g64 is in Compare" in said and compared.value == [key for _, key in seats([*SEED[:2], recorded])]
    assert "__type__" in points.compared("none such", "[]", page, None)[0] and "__type__" in points.opened("none such", "[]", page)


def of_another_model(report: Report) -> Report:
    experiment = dataclasses.replace(report.experiment, model=ModelRef("other<b>", "r2"))
    return dataclasses.replace(report, experiment=experiment, provenance=report.provenance | {"recorded": False})


def test_points_follow_the_model_that_is_compared(shell: Shell) -> None:
    points, demo = Points(shell), TabState().after(SEED)
    assert points.arrived(demo.text(), "bits", "kld_mean", SEED) == [gr.skip()] * 7, "what is drawn is not drawn again"
    page = [of_another_model(SEED[0]), of_another_model(SEED[2])]
    for report in page:
        shell.shelf.add(report)
    where, _, words, _, table, held, card = points.arrived(demo.text(), "bits", "kld_mean", page)
    assert "other&lt;b&gt; @ r2" in where and "2 of this page" in where and "All points of other&lt;b&gt;" in table and "Click a point" in card
    assert table.count("data-pick='report:") == 1 and "Of 1 configurations" in words and "recorded" not in table
    bare = points.arrived(demo.text(), "bits", "kld_mean", page[:1])
    assert "Nothing measured of other&lt;b&gt; yet" in bare[0] and "press Run sweep" in bare[0] and "data-pick" not in bare[4]
    swept = list(points.sweep("demo", ["rtn"], [4], [64], held, "bits", "kld_mean", *OPTIONS))[-2]
    assert "<b>demo" in swept[1] and "recorded" in swept[1], "the model that was swept is shown"
    assert points.arrived(swept[-1], "bits", "kld_mean", page) == [gr.skip()] * 7, "until another comes to Compare"
    assert "<b>demo" in points.arrived(held, "bits", "kld_mean", SEED)[0]


def test_a_sensitivity_is_of_the_model_that_is_compared(shell: Shell) -> None:
    layers = Sensitivities(shell, {"model": "demo", "method": "rtn", "params": {}, "rows": ROWS, "kept": {}, "recorded": True, "label": "RTN"})
    key = layers.start("demo")
    assert key and layers.arrived("demo", "demo", key, 4, "kld") == [gr.skip()] * 7, "what is drawn is not drawn again"
    line, gone, _, words, *_, seen = layers.arrived("other", "demo", key, 4, "kld")
    assert "Nothing measured of other yet: press Measure sensitivity" in line and gone == "" and seen == "other" and words == ""
    assert "other" not in layers.titles(gone)[0] and "of demo" in layers.titles(key)[0] and "error" not in layers.solved(gone, 3.0)[-1]
    assert layers.arrived("demo", "other", gone, 4, "kld")[1] == key
    assert layers.arrived("demo", "other", key, 4, "kld")[1] == gr.skip(), "it was measured before the model came to Compare"


def test_telling_apart_asks_for_both_as_they_were(shell: Shell) -> None:
    points, keys = Points(shell), keys_of(SEED)
    last = list(points.apart(keys[2], keys[3], "[]", keys))[-1]
    assert "Compared in 0 s. GPTQ 4-bit g64 is better than RTN 4-bit g64" in last[0]
    asked = shell.runner.asked[0][1]
    assert asked["first"] == configuration(SEED[2], scored=True) and asked["second"]["method"] == "gptq" and asked["second"]["sequences"] == 16
    assert "Choose two" in list(points.apart(keys[2], "", "[]", keys))[-1][0]


def test_telling_apart_reads_the_texts_that_the_reports_were_measured_with(shell: Shell) -> None:
    read = dataclasses.replace(SEED[3].experiment.calibration, source="pasted", text="My own text.", tokens=16 * 128, length=128)
    scored = dataclasses.replace(SEED[3].experiment.evaluation, length=128, bos="text")
    asked = configuration(dataclasses.replace(SEED[3], experiment=dataclasses.replace(SEED[3].experiment, calibration=read, evaluation=scored)), scored=True)
    assert (asked["calibration"], asked["text"], asked["sequences"], asked["length"], asked["bos"]) == ("pasted", "My own text.", 16, 128, "text")
    pasted = dataclasses.replace(scored, source="pasted", text="Scored.")
    alike = dataclasses.replace(SEED[2], experiment=dataclasses.replace(SEED[2].experiment, evaluation=pasted))
    assert configuration(alike, scored=True)["text"] == "Scored." and configuration(alike)["text"] == ""

    from explorer.hub import Hub
    from explorer.request import Request

    experiment = SEED[3].experiment
    made, _, _ = Request("demo", **configuration(SEED[3], scored=True)).prepare(Hub())
    assert made == experiment, "what is told apart is what was reported"


def test_sensitivity_streams_and_an_allocation_is_run(shell: Shell) -> None:
    layers = Sensitivities(shell, {})
    outputs = list(layers.measured("demo", "rtn", 64, True, 4, "kld", ""))
    key = outputs[-1][1]
    assert layers.kept.get(key)["rows"] == ROWS and shell.runner.asked[0][1]["params"] == {"group_size": 64, "symmetric": False}
    solved = layers.solved(key, 3.0)
    assert "1 at 2 bits, 1 at 4 bits" in solved[1] and "layers.1" in solved[4] + " layers.1"
    assert layers.allocated(key, 3.0)["assignment"] == {"layers.0.mlp.up_proj": 2, "layers.1.mlp.up_proj": 4}, "the sensitive layer gets the bits"
    ran = list(layers.ran(key, 3.0, EVERY, keys_of(SEED[:1]), None, *OPTIONS))
    methods = [one[0] for one in shell.runner.asked[1:]]
    assert [one[2]["kv_bits"] for one in shell.runner.asked[1:]] == [16, 4, 4, 4], "the baseline is whole"
    assert methods == ["none", "mixed", "rtn", "rtn"] and "in Compare" in ran[-1][0]
    shown = shell.shelf.pick(ran[-1][3].value)
    assert [r.experiment.spec.method for r in shown] == ["none", "mixed"] and isinstance(shown[1], Report)


def test_an_allocation_can_keep_to_widths_that_files_hold(shell: Shell) -> None:
    """What is offered beside the button is what `save` then does: with 4 and 8 bits there is a file, of 3 bits with zero-points beside 8 none."""
    layers = Sensitivities(shell, {})
    names = [f"layers.0.self_attn.{part}_proj" for part in "qkvo"]
    rows = [row(name, bits, (1 + i) * 4.0**-bits) for i, name in enumerate(names) for bits in (3, 4, 8)]
    asked = {"model": "demo", "method": "rtn", "params": {"group_size": 64, "symmetric": False}, "rows": rows, "kept": {}}
    key = layers.kept.put(asked)
    free, held = layers.allocated(key, 4.75), layers.allocated(key, 5.0, FILES)
    assert set(free["assignment"].values()) == {3, 4, 8} and set(held["assignment"].values()) == {4, 8}
    assert len({held["assignment"][name] for name in names[:3]}) == 1 and held["bits"] <= 5.0
    assert "No file holds it in low bits" in layers.solved(key, 4.75)[-1] and "With the widths 4 and 8 a file can" in layers.solved(key, 4.75)[-1]
    assert "Commands writes it as compressed-tensors for vLLM." in layers.solved(key, 5.0, FILES)[-1]
    both = layers.kept.put(asked | {"params": {"group_size": 64, "symmetric": True}})
    assert "as compressed-tensors for vLLM or as GGUF for llama.cpp" in layers.solved(both, 5.0, FILES)[-1]
    hqq = layers.solved(layers.kept.put(asked | {"method": "hqq", "params": {"group_size": 64}}), 5.0, FILES)[-1]
    assert "No file holds it" in hqq and "4 and 8" not in hqq
    assert "more than the budget" in layers.solved(key, 3.5, FILES)[-1]
    only = layers.kept.put(asked | {"rows": [one for one in rows if one["bits"] == 3]})
    assert "No layer was measured at 4 or 8 bits" in layers.solved(only, 5.0, FILES)[-1]


def test_an_allocation_is_run_beside_the_widths_on_both_sides(shell: Shell) -> None:
    layers, points = Sensitivities(shell, {}), [{"kind": "uniform", "name": "", "bits": bits, "width": bits} for bits in (2, 3, 4, 8)]
    key = layers.kept.put({"method": "rtn", "params": {}})
    for bits, near in ((5.0, [4, 8]), (3.9, [3, 4]), (4.0, [4, 8]), (8.0, [8, 4])):
        data = {"bits": bits, "rules": "", "points": [*points, {"kind": "mixed"}]}
        assert [params["bits"] for _, _, params, _ in layers.asked(key, data)[2:]] == near


def test_a_budget_that_cannot_be_met_is_a_sentence(shell: Shell) -> None:
    layers = Sensitivities(shell, {})
    key = layers.kept.put({"model": "demo", "method": "rtn", "params": {}, "rows": ROWS, "kept": {"layers.9.x": 100}})
    assert layers.weights(key) == (300, 1600)
    assert "more than the budget" in layers.solved(key, 2.0)[-1] and "Measure the sensitivity first" in layers.solved("gone", 3.0)[-1]
    shell.runner.error = InputError("No such layer.")
    assert "No such layer." in list(layers.measured("demo", "rtn", 64, True, 4, "kld", key))[-1][0]
