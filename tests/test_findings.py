"""What a verdict rests on: the cause by the rung of as many bits, no verdict on disturbed times, what an interval is over. On recorded reports."""

from __future__ import annotations

import dataclasses
import json

from explorer.answers import place, slower_start, speed
from explorer.bugs import impossible
from explorer.detectors import sentence, verdicts
from explorer.docs import SEEDS
from explorer.figures import charts
from explorer.figures.ladder import rungs_for
from explorer.findings import FEW, cause, counted
from explorer.records import QuantSpec, Report, report_from
from explorer.ui.table import SECTIONS, cell
from explorer.ui.tabs import failures

RECORDED = [report_from(data) for data in json.loads(SEEDS.read_text())]
BASE, FOUR = RECORDED[0], next(r for r in RECORDED if r.name == "RTN 4-bit g64")


def changed(report: Report, **values: float) -> Report:
    return dataclasses.replace(report, measurements=tuple(dataclasses.replace(m, value=values.get(m.metric, m.value)) for m in report.measurements))


def test_the_cause_of_a_bad_number_is_what_differs_from_the_rung_of_as_many_bits() -> None:
    coarse = {name: value for name, value in FOUR.experiment.spec.params if name != "group_size"} | {"granularity": "tensor"}
    report = changed(dataclasses.replace(FOUR, experiment=dataclasses.replace(FOUR.experiment, spec=QuantSpec.of("rtn", **coarse))), perplexity_delta=35.55)
    report = dataclasses.replace(report, measurements=tuple(dataclasses.replace(m, low=None, high=None) for m in report.measurements))
    words = sentence(verdicts(report, BASE, rungs_for(report)))
    cost = f"{FOUR.value('perplexity_delta'):+.2f}%"
    assert f"the cause is one scale for a whole tensor; in groups of 64 the same bits cost {cost}." in words and "so few bits" not in words
    assert "RTN in groups of 64 at that size" in place(changed(report, kld_mean=0.2), rungs_for(report))
    assert not cause(report, []) and cause(FOUR, rungs_for(FOUR)) == FEW


def test_no_verdict_on_a_speed_beside_other_work_or_without_an_interval() -> None:
    base, run = RECORDED[:2]
    row = {row.metric: row for row in SECTIONS["Speed"]}
    assert "class='better'" in cell(row["decode_tokens_per_second"], run, base, False)
    assert "no interval" in (late := cell(row["decode_latency_p95"], run, base, False)) and "class=''" in late
    for pair in ((changed(run, decode_waited=40.0), base), (run, changed(base, decode_waited=40.0))):
        cells = [cell(row[name], *pair, False) for name in ("decode_tokens_per_second", "decode_latency_p95", "time_to_first_token")]
        assert all("class=''" in each for each in cells) and "other work" in cells[2]
        assert "nothing to compare its speed with" in speed(*pair)[-1] and not slower_start(*pair)


def test_an_interval_is_over_windows() -> None:
    run = RECORDED[1]
    assert counted(run.find("kld_mean"), run) == "over 16 windows (8,176 tokens)" and counted(run.find("kld_floor"), run) == "over 8 windows (4,088 tokens)"
    assert counted(run.find("decode_tokens_per_second"), run) == "over 96 values"
    gptq = next(r for r in RECORDED if r.find("calibration_perplexity"))
    assert counted(gptq.find("calibration_perplexity"), gptq) == "over 4 windows (2,044 tokens)"


def test_bars_of_layers_are_over_windows() -> None:
    chart = charts()["sensitivity_ranking"]
    said = chart.summary({**chart.example, "text": "bundled calibration text, 4 windows of 512 tokens drawn at random, float32 arithmetic"})
    assert "intervals over 4 windows (2,044 tokens)" in said


def test_only_bugs_that_a_configuration_can_have_are_offered() -> None:
    wide, gptq = RECORDED[1], next(r for r in RECORDED if r.experiment.spec.method == "gptq")
    assert set(impossible(wide)) == {"calibration", "stale", "transposed", "nibbles"} and not impossible(gptq)
    assert set(impossible(FOUR)) == {"calibration"}
    shown = failures.possible([BASE, wide], "nibbles")
    assert [name for _, name in shown["choices"]] == ["zero", "overflow", "fallback"] and shown["value"] == "zero"
    assert "its codes fill whole bytes" in shown["info"] and failures.possible([BASE, gptq], "nibbles")["info"] == ""
