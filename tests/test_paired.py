"""Two configurations on the same windows: the paired difference by hand, what it finds that intervals side by side hide, and when it says nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import torch

from explorer import wide
from explorer.commands.run import table
from explorer.export import as_csv, as_json
from explorer.figures import divergence
from explorer.learn.bank import questions
from explorer.learn.facts import Facts
from explorer.learn.pose import grade, pose
from explorer.metrics import mean_interval
from explorer.paired import ONE_BY_ONE, WINDOWS, beside, difference, mean_difference, ranked, why_not
from explorer.recorded import SEEDS
from explorer.records import Experiment, Measurement, ModelRef, QuantSpec, Report, TextRef, report_from
from explorer.report_page import as_html
from explorer.table import comparison

TEXT = TextRef("bundled", "digest", 2048, 512)


def report(name: str, windows: list[float], nll: list[float] | None = None, text: TextRef = TEXT, bad: int = 0) -> Report:
    """A report with these window means of the divergence, and of the log-likelihood's change."""
    mean, low, high = mean_interval(torch.tensor(windows, dtype=torch.float64).unsqueeze(1))
    found = [Measurement("kld_mean", mean, "nats", low=low, high=high), Measurement("top1_agreement", 90.0, "%"), Measurement("bits_per_weight", 4.0)]
    found += [Measurement(WINDOWS["kld_mean"], windows, "nats", bad=bad), Measurement(WINDOWS["perplexity"], nll or windows, "nats", bad=bad)]
    return Report(Experiment(ModelRef("m", "r"), QuantSpec.of("rtn", bits=len(name)), text, text), tuple(found), {"label": name})


def moving(shift: float, noise: float, seed: int = 0) -> tuple[Report, Report]:
    """Two reports over 16 windows, some of which are hard for both: the second is `shift` worse in each, give or take `noise`."""
    draw = random.Random(seed)
    hard = [draw.lognormvariate(-3, 0.6) for _ in range(16)]
    return report("A", hard), report("BB", [h + shift + noise * draw.gauss(0, 1) for h in hard])


def test_the_paired_difference_by_hand() -> None:
    """Differences 1, 2 and 6: their mean 3, and t of 2 degrees of freedom, 4.30265, times their standard error."""
    half = 4.30265 * (7 / 3) ** 0.5
    ours, theirs = report("A", [5.0, 4.0, 9.0]), report("B", [4.0, 2.0, 3.0])
    found = difference(ours, theirs, "kld_mean")
    assert (found.value, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-5) and (found.n, found.unit) == (3, "nats")
    back = difference(theirs, ours, "kld_mean")
    assert (back.value, back.low, back.high) == (-found.value, -found.high, -found.low)
    values = [0.3, -0.2, 0.9, 0.4, 0.1]
    assert mean_difference(values) == pytest.approx(mean_interval(torch.tensor(values, dtype=torch.float64).unsqueeze(1))), "one interval"


def test_a_difference_in_perplexity_is_a_ratio() -> None:
    """Log-likelihoods that differ by 0.1 nats in each window are perplexities that differ by 10.5%."""
    ours, theirs = report("A", [1.0, 2.0, 3.0], [0.3, 0.5, 0.4]), report("B", [1.0, 2.0, 3.0], [0.2, 0.4, 0.3])
    for metric in ("perplexity", "perplexity_delta"):
        found = difference(ours, theirs, metric)
        assert found.value == pytest.approx(100 * math.expm1(0.1)) and found.low <= found.value <= found.high and found.unit == "%"


@pytest.mark.parametrize("seed", range(20))
def test_pairing_finds_what_intervals_side_by_side_hide(seed: int) -> None:
    a, b = moving(0.005, 0.002, seed)
    assert a.find("kld_mean").high > b.find("kld_mean").low, "the intervals overlap"
    facts = Facts({"a": a, "b": b})
    assert facts.below("a", "b", "kld_mean") and not facts.below("b", "a", "kld_mean") and not facts.tied("a", "b", "kld_mean")
    assert 0.003 < facts.difference("b", "a", "kld_mean") < 0.007
    assert facts.difference_low("b", "a", "kld_mean") > 0 > facts.difference_high("a", "b", "kld_mean")


def test_pairing_is_wrong_as_often_as_it_says() -> None:
    """Of pairs that do not differ, about one in twenty is said to."""
    found = [difference(*moving(0.0, 0.002, seed), "kld_mean") for seed in range(1000)]
    assert 0.03 < sum(not m.low <= 0 <= m.high for m in found) / 1000 < 0.07


@pytest.mark.parametrize("seed", range(20))
def test_intervals_that_lie_apart_are_apart_when_paired(seed: int) -> None:
    """So reports without windows are only ever said to differ when they do."""
    draw = random.Random(seed)
    a, b = (report("A", [draw.gauss(mean, 1) for _ in range(8)]) for mean in (0, 6))
    assert a.find("kld_mean").high < b.find("kld_mean").low and difference(a, b, "kld_mean").high < 0


def test_what_cannot_be_paired_says_why() -> None:
    a, b = moving(0.005, 0.001)
    bare = dataclasses.replace(b, measurements=tuple(m for m in b.measurements if not m.metric.endswith("windows")))
    other = report("B", b.value("kld_windows"), text=dataclasses.replace(TEXT, digest="another"))
    shorter, lost, one = report("B", [0.1, 0.2]), report("B", b.value("kld_windows"), bad=3), report("B", [0.1])
    for pair, why in (
        ((a, bare), "before windows"), ((a, other), "another model or text"), ((a, shorter), "too few"), ((one, one), "too few"), ((a, lost), "left out"),
    ):  # fmt: skip
        assert why in why_not(*pair, "kld_mean") and difference(*pair, "kld_mean") is None
        assert "are not paired" in beside(*pair)
    assert "not kept" in why_not(a, b, "top1_agreement") and not why_not(a, b, "kld_mean")
    pasted = report("B", b.value("kld_windows"), text=dataclasses.replace(TEXT, text="the text itself"))
    assert difference(a, pasted, "kld_mean"), "recordings leave the text out; its digest is the same"
    facts = Facts({"a": a, "bare": bare})
    assert facts.tied("a", "bare", "kld_mean"), "overlapping intervals decide nothing"
    with pytest.raises(KeyError, match="before windows were kept"):
        facts.difference("a", "bare", "kld_mean")


def test_compare_says_which_differ() -> None:
    a, b = moving(0.005, 0.001)
    near = report("CCC", [w + (0.001 if i % 2 else -0.001) for i, w in enumerate(b.value("kld_windows"))])
    words = divergence.summary([near, b, a], "")
    assert words == divergence.summary([near, b, a], "") and "A is 0.005" in words and "± 0.000" in words and "(same 16 windows, paired)" in words
    assert words.count("cannot be told apart") == 1 and words.index("A is") < words.index("cannot be told apart")
    more = [report(f"R{i}", [w + i for w in a.value("kld_windows")]) for i in range(6)]
    assert ranked(more).count("paired") == 3 and ranked([a]) == ""
    assert ranked(more).endswith(f". {ONE_BY_ONE}") and ranked(more[:2]).endswith("paired).")


def test_windows_are_in_the_json_and_in_no_table() -> None:
    seeds = [report_from(one) for one in json.loads(SEEDS.read_text())][1:3]
    values = [Measurement(name, [0.25, 0.75], "nats") for name in ("kld_windows", "nll_delta_windows")]
    reports = [dataclasses.replace(r, measurements=(*(m for m in r.measurements if not m.metric.endswith("_windows")), *values)) for r in seeds]
    for shown in (comparison(reports), as_csv(reports), wide.table(wide.rows(reports)), table(reports[0])):
        assert shown and "0.75]" not in shown and "_windows" not in shown
    kept = json.loads(as_json(reports))[0]["measurements"]
    assert [m["value"] for m in kept if m["metric"].endswith("_windows")] == [[0.25, 0.75]] * 2
    assert "same 2 windows, paired" in as_html(reports, "", "", ""), "what pairing found stands in the report to take away"


def test_an_order_is_graded_by_pairs() -> None:
    """Of runs whose intervals overlap but which differ window by window, only one order is right."""
    question = questions()["kv-order"]
    a, b = moving(0.005, 0.001)
    worst = report("C", [w + 1 for w in b.value("kld_windows")])
    reports = dict(zip(question.runs, (a, b, worst), strict=True))
    posed = pose(question, "x")
    right = sorted(range(3), key=lambda i: reports[posed.shown()[i]].value("kld_mean"))
    assert "the difference in each window tells" in grade(posed, right, reports).right
    assert grade(posed, right, reports).score == 1 and grade(posed, [right[1], right[0], right[2]], reports).score == pytest.approx(2 / 3)
