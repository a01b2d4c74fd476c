"""What a verdict rests on: the cause by the rung of as many bits, no verdict on disturbed times, what an interval is over. On recorded reports."""

from __future__ import annotations

import dataclasses
import json

from explorer.answers import answers, place
from explorer.bugs import impossible
from explorer.detectors import sentence, verdicts
from explorer.figures import charts
from explorer.figures.ladder import rungs_for, summary
from explorer.findings import FEW, cause, counted
from explorer.recorded import SEEDS
from explorer.records import Measurement, QuantSpec, Report, change, report_from
from explorer.speeds import slower_start, speed
from explorer.table import SECTIONS, cell
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
    rungs = rungs_for(FOUR)
    four, two = (next(r.value("perplexity_delta") for r in rungs if r.experiment.spec.get("bits") == bits) for bits in (4, 2))
    less = "a symmetric grid, which has a level fewer; in groups of 64 with zero-points the same bits cost"
    assert f"what differs is one scale for a whole tensor and {less} {four:+.2f}%." in words and "so few bits" not in words
    levels = next(r for r in RECORDED if r.name == "RTN 2-bit g64")
    assert cause(levels, rungs) == f"the cause is {less} {change(two)[0]}"
    assert "RTN 2-bit g64: worse than the lowest rung, plain rounding at 2.28 bits" in summary([BASE, levels], "")
    assert "RTN in groups of 64 at that size" in place(changed(report, kld_mean=0.2), rungs_for(report))
    assert not cause(report, []) and cause(FOUR, rungs_for(FOUR)) == FEW


def test_better_than_a_ladder_that_ends_low_is_not_lossless() -> None:
    """Of a model without recorded rungs those on the page are all there are; only at 8 bits does better mean lossless."""
    gptq = next(r for r in RECORDED if r.experiment.spec.method == "gptq")
    wide, four, two = (next(r for r in RECORDED if r.name == name) for name in ("RTN 8-bit per-channel", "RTN 4-bit g64", "RTN 2-bit g64"))
    rung = f"RTN 4-bit g64, the widest rung measured ({four.value('kld_mean'):.4f})"
    assert f"nats is better than {rung} for 4.25 bits stored." in (words := place(gptq, [four, two]))
    assert "lossless" not in words and gptq.find("perplexity_delta").low > 0
    assert place(changed(gptq, kld_mean=0.0004, kld_floor=0.0001), [wide, four, two]).endswith("for 4.25 bits stored: as good as lossless.")


def raced(report: Report, low: float, high: float, metric: str = "decode_speedup") -> Report:
    """With a speed-up over 16 bits of this interval."""
    kept = tuple(m for m in report.measurements if m.metric != metric)
    return dataclasses.replace(report, measurements=(*kept, Measurement(metric, (low * high) ** 0.5, "x", low=low, high=high, n=6)))


def silent(report: Report) -> Report:
    """Without any speed-up."""
    return dataclasses.replace(report, measurements=tuple(m for m in report.measurements if not m.metric.endswith("_speedup")))


def test_a_speed_is_judged_by_the_loop_that_ran_in_turn_with_it_alone() -> None:
    run, base = silent(FOUR), changed(BASE, decode_tokens_per_second=1.0)
    row = {row.metric: row for row in SECTIONS["Speed"]}
    for name in ("decode_tokens_per_second", "decode_latency_p95", "time_to_first_token"):
        assert "class=''" in cell(row[name], run, base, False), "two runs apart: a hundred times the baseline's speed is no verdict"
    assert "no 16-bit loop was timed in turn" in speed(run)[-1] and "as fast" not in answers(run, base)[0].text and not slower_start(run)
    assert "class='empty'" in cell(row["decode_speedup"], run, base, False)
    for low, high, kind, words, short in (
        (1.8, 2.2, "better", "It is faster: 1.99", "1.99 times as fast as 16 bits"), (0.95, 1.2, "same", "No measurable difference", "no measurable"),
        (0.4, 0.6, "worse", "It is slower: 0.49", "slower: unpacking costs more"),
    ):  # fmt: skip
        fast = raced(run, low, high)
        assert (
            f"class='{kind}'" in (shown := cell(row["decode_speedup"], fast, base, False))
            and f"95% interval within this run {low:.2f} to {high:.2f} x" in shown
        )
        assert words in speed(fast)[-1] and f"({low:.2f} to {high:.2f} within this run, 6 rounds in turn" in speed(fast)[-1]
        assert short in answers(fast, base)[0].text
    late = raced(run, 0.5, 0.7, "first_token_speedup")
    assert "1.69 times as long as in 16 bits (1.43 to 2.00 within this run, 6 rounds in turn)" in slower_start(late)[0]
    assert not slower_start(raced(late, 0.9, 1.1, "first_token_speedup"))


def test_what_is_slower_is_put_down_to_what_its_kernel_does() -> None:
    """int8 products unpack nothing, and a 16-bit copy neither."""
    for kernel, why, extra in (
        ("w8a8_int8_matmul (oneDNN)", "rounding the inputs and the int8 product take longer here than the bytes save", "rounding the inputs is extra"),
        ("w8a8_fp8_matmul (16-bit copy)", "rounding the inputs takes longer here than the bytes save", "rounding the inputs is extra"),
        ("block_float_matmul (summed 4-bit codes)", "rounding the inputs takes longer here than the bytes save", "rounding the inputs is extra"),
        ("int8_matmul (16-bit copy)", "no bytes are saved, the weights are a 16-bit copy here", "6 rounds in turn)."),
        ("int4_matmul (cpu)", "unpacking costs more here than the bytes save", "unpacking is extra"),
    ):  # fmt: skip
        run = dataclasses.replace(FOUR, provenance=FOUR.provenance | {"kernel_summary": f"{kernel} on 42 of 42 layers"})
        slow = raced(raced(run, 0.5, 0.7), 0.5, 0.7, "first_token_speedup")
        assert answers(slow, BASE)[0].text.endswith(f"slower: {why}.")
        assert speed(slow)[-1].endswith(f" {why[0].upper()}{why[1:]}.") and extra in slower_start(slow)[0]
    turned = dataclasses.replace(FOUR, experiment=dataclasses.replace(FOUR.experiment, spec=QuantSpec.of("rtn", bits=4, rotate=True)))
    slow = raced(raced(turned, 0.5, 0.7), 0.5, 0.7, "first_token_speedup")
    assert "Turning the inputs and unpacking cost more here" in speed(slow)[-1] and "turning the inputs is extra" in slower_start(slow)[0]


def test_an_interval_is_over_windows() -> None:
    run = RECORDED[1]
    assert counted(run.find("kld_mean"), run) == "over 16 windows (8,176 tokens)" and counted(run.find("kld_floor"), run) == "over 8 windows (4,088 tokens)"
    assert counted(run.find("decode_tokens_per_second"), run) == "over 192 values"
    gptq = next(r for r in RECORDED if r.find("calibration_perplexity"))
    assert counted(gptq.find("calibration_perplexity"), gptq) == "over 4 windows (2,044 tokens)"


def test_bars_of_layers_are_over_windows() -> None:
    chart = charts()["sensitivity_ranking"]
    said = chart.summary({**chart.example, "text": "bundled calibration text, 4 windows of 512 tokens drawn at random, float32 arithmetic"})
    assert "intervals of each layer alone over 4 windows (2,044 tokens)" in said


def test_only_bugs_that_a_configuration_can_have_are_offered() -> None:
    wide, gptq = RECORDED[1], next(r for r in RECORDED if r.experiment.spec.method == "gptq")
    assert set(impossible(wide)) == {"calibration", "stale", "transposed", "nibbles"} and not impossible(gptq)
    assert set(impossible(FOUR)) == {"calibration"}
    shown = failures.possible([BASE, wide], "nibbles")
    assert [name for _, name in shown["choices"]] == ["zero", "overflow", "fallback"] and shown["value"] == "zero"
    assert "its codes fill whole bytes" in shown["info"] and failures.possible([BASE, gptq], "nibbles")["info"] == ""
