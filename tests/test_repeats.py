"""How far runs of the same work are apart: they share a place in the figure of times, and docs/RESULTS.md says how far single ones differ."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from explorer import repeats
from explorer.figures import tradeoffs
from explorer.recorded import survey
from explorer.records import Measurement, Report
from explorer.repeats import between, spread
from explorer.speeds import judged


def test_the_spread_is_that_of_the_logarithms() -> None:
    generator = random.Random(0)
    runs = [(name, scale * math.exp(generator.gauss(0, 0.1))) for name, scale in (("a", 2.0), ("b", 0.5)) for _ in range(2000)]
    found = spread(runs)
    assert found.factor() == pytest.approx(math.exp(1.96 * 0.1), rel=0.02) and found.factor(4) == pytest.approx(math.exp(0.98 * 0.1), rel=0.02)
    assert found.means == {"a": (pytest.approx(2.0, rel=0.01), 2000), "b": (pytest.approx(0.5, rel=0.01), 2000)}
    assert spread([*runs[:5], ("", 9.0), ("alone", 3.0)]) is None, "four degrees of freedom are too few"


def test_points_of_the_same_work_stand_together_and_the_better_one_wins() -> None:
    def point(key: str, kld: float, speedup: float) -> dict:
        ends = {"kld_mean": [kld, 0.9 * kld, 1.1 * kld], "decode_speedup": [speedup, 0.99 * speedup, 1.01 * speedup]}
        return {"key": key, "name": key, "method": "rtn", "origin": "recorded", "device": "a CPU", "metrics": ends, "work": "4-bit"}

    pair = [point("good", 0.01, 2.0), point("fast", 0.04, 2.3)]
    standing = {p["key"]: kind for p, *_, kind in tradeoffs.set_out({"points": pair, "view": "latency"})[1]}
    assert standing["fast"] == "best", "two runs do not tell how far runs differ"
    data = {"points": [*pair, *(point(str(i), 5.0, value) for i, value in enumerate((1.8, 2.1, 2.4, 2.0, 1.9, 2.5)))], "view": "latency"}
    placed = tradeoffs.set_out(data)[1]
    assert len({x for _, x, *_ in placed}) == 1 and {p["key"] for p, *_, kind in placed if kind == "best"} == {"good"}
    assert "in the mean of 8 runs" in tradeoffs.summary(data)


def test_the_survey_repeats_the_same_work() -> None:
    found = tradeoffs.repeats([tradeoffs.point_of(report, key, "recorded") for key, report in survey().items()])
    assert found is not None and max(runs for _, runs in found.means.values()) >= 6 and 1 < found.factor() < 2


def test_first_tokens_are_judged_by_how_far_first_tokens_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all runs decode alike and their first tokens differ, a tenth slower is slower in decoding alone."""
    one = next(report for report in survey().values() if repeats.work(report))
    rest = tuple(m for m in one.measurements if not m.metric.endswith("_speedup"))

    def run(decoding: float, first: float) -> Report:
        both = {"decode_speedup": decoding, "first_token_speedup": first}
        return dataclasses.replace(one, measurements=(*rest, *(Measurement(name, v, "x", low=v, high=v, n=6) for name, v in both.items())))

    monkeypatch.setattr(repeats, "survey", lambda: {str(i): run(2.0 + 0.001 * i, 1.5 if i % 2 else 0.7) for i in range(8)})
    between.cache_clear()
    try:
        assert between() < 1.01 < 1.5 < between("first_token_speedup")
        assert judged(run(0.9, 0.9)) == "slower" and judged(run(0.9, 0.9), "first_token_speedup") == "same"
    finally:
        between.cache_clear()
