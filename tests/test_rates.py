"""Numbers that stand together: one read rate of memory, times of one device, factors in place of thousands of percent, what each view of a figure says."""

from __future__ import annotations

import dataclasses
import json

import pytest

from explorer.answers import changed
from explorer.docs import peers, results_table
from explorer.figures import charts, figures, tradeoffs
from explorer.findings import known, one_rate
from explorer.recorded import SEEDS
from explorer.records import Report, change, fitting, report_from
from explorer.speeds import share, speed

ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]
FOUR, BROKEN = (next(r for r in ALL if r.name == name) for name in ("RTN 4-bit g64", "RTN 2-bit g64"))
PERPLEXITY = figures()["quality"]


def read(report: Report, rate: float, **told: object) -> Report:
    """The report as if memory had been read at another rate."""
    factor = rate / report.value("decode_bandwidth")
    new = {"decode_bandwidth": rate, "decode_limit": report.value("decode_limit") * factor}
    found = tuple(dataclasses.replace(m, value=new.get(m.metric, m.value)) for m in report.measurements)
    return Report(report.experiment, found, report.provenance | told)


def test_what_is_shown_together_has_one_rate() -> None:
    slow, fast, other = read(FOUR, 44e9), read(FOUR, 83e9), read(FOUR, 200e9, device="another")
    one, two, three = one_rate([slow, fast, other])
    assert one.value("decode_limit") == pytest.approx(fast.value("decode_limit")) == pytest.approx(two.value("decode_limit"))
    assert one.find("decode_limit").n == 2 and three.find("decode_limit").n == 1 and three.value("decode_limit") == pytest.approx(other.value("decode_limit"))
    assert slow.find("decode_limit").n == 0, "stored reports keep their own"
    recorded = read(FOUR, 300e9, recorded=True)
    assert one_rate([slow, recorded])[0].value("decode_bandwidth") == 44e9, "what was recorded is no reading of today"
    assert "83.0 GB/s, the best of 2 readings" in str(speed(one)) and "same process" in str(speed(slow))
    drawn = figures()["speed"].draw([slow, fast], "")["data"]
    limits = [trace for trace in drawn if "hovertemplate" in trace]
    assert limits[0]["x"] == pytest.approx(limits[1]["x"]) and "the best of 2 readings" in limits[0]["hovertemplate"]


def test_a_limit_that_does_not_say_its_rate_is_left_out() -> None:
    silent = Report(FOUR.experiment, tuple(m for m in FOUR.measurements if m.metric != "decode_bandwidth"), FOUR.provenance)
    shown = one_rate([silent, FOUR])
    assert known(shown[0], "decode_limit") is None and known(shown[1], "decode_limit")
    assert one_rate([silent]) == [silent], "where none says its rate there is none to prefer"
    points = [tradeoffs.point_of(r, str(i), "measured now") for i, r in enumerate(shown)]
    said = tradeoffs.summary({"points": points, "view": "roofline"})
    assert "1 more do not say the rate" in said and "from one reading of memory" in said


def test_the_share_of_reading_follows_the_rate() -> None:
    rate = FOUR.value("decode_bandwidth") * FOUR.value("decode_tokens_per_second") / FOUR.value("decode_limit")
    assert share(one_rate([read(FOUR, 2 * rate)])[0]) == pytest.approx(50)
    assert share(one_rate([read(FOUR, 2 * rate), read(FOUR, 4 * rate)])[0]) == pytest.approx(25)


def test_beyond_a_hundred_percent_a_change_is_a_factor() -> None:
    assert change(2.987, 1.87, 4.11) == ("+2.99%", "+1.87 to +4.11") and change(-0.5) == ("-0.50%", "")
    assert change(10686.34, 8733.64, 13070.68) == ("×108", "88 to 132") and change(196.0)[0] == "×2.96" and change(float("inf"))[0] == "×inf"
    assert fitting(1873.89, 307.78) == "1,870" and fitting(17.37, 2.05) == "17.4" and fitting(0.0416, 0.0018) == "0.0416"
    words = changed(BROKEN.find("perplexity_delta"), BROKEN.find("perplexity"))
    assert words == "×108 (88 to 132), 17.4 → 1,870"
    assert "×108 (88 to 132)" in PERPLEXITY.summary(ALL, "") and "| 1,870 ± 310 | ×108 ± 22 |" in results_table()


def test_times_of_another_device_are_blank_in_the_tables() -> None:
    pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    from explorer.table import comparison
    from explorer.ui.tabs.tradeoffs.points_table import points_table

    other = dataclasses.replace(FOUR, provenance=FOUR.provenance | {"device": "another CPU"})
    points = [tradeoffs.point_of(FOUR, "a", "recorded"), tradeoffs.point_of(other, "b", "measured now")]
    rows = points_table(points).split("<tr>")[2:]
    mine, theirs = (next(row for row in rows if f"report:{key}" in row) for key in "ba")
    rate = f">{1000 / FOUR.value('decode_tokens_per_second'):.2f}"
    assert rate in mine and rate not in theirs and theirs.count(f"Measured on {FOUR.provenance['device']}") == 3 and "Measured on" not in mine
    recorded = [dataclasses.replace(r, provenance=r.provenance | {"recorded": True}) for r in ALL[:2]]
    assert comparison([*recorded, other]).count(">another device<") == 2 * 8 and "another device" not in comparison(ALL)
    assert "<span>×108</span>" in comparison(ALL) and "88 to 132" in comparison(ALL)


def test_each_view_says_what_is_seen_in_it() -> None:
    told = {view: tradeoffs.looks({"view": view}) for view in tradeoffs.VIEWS}
    assert len(set(told.values())) == len(told) and "dotted" not in told["roofline"] and "dashed line" in told["roofline"]
    points = [tradeoffs.point_of(r, str(i), "measured now") for i, r in enumerate(one_rate(ALL))]
    named = [text for trace in tradeoffs.draw({"points": points, "view": "roofline"})["data"][1:] for text in trace["text"] if text]
    assert "16-bit baseline" in named and len(named) >= 2, "points have names without a pointer"


def test_the_batch_sweep_says_what_its_lines_do() -> None:
    chart, step = charts()["batch"], {"bytes": 1e7, "flops": 2e7}
    assert chart.looks({}) == chart.see
    step |= {"prefill_tokens_per_second": 1.0}
    rates = {"chosen": (1000.0, 1500.0), "16 bits": (800.0, 2000.0), "W8A8": (400.0, 500.0)}
    arms = [{"role": role, "label": "RTN", "peak": "matmul_8" if role == "W8A8" else "matmul_16", "points": [
        step | {"batch": b, "tokens_per_second": rate, "low": rate, "high": rate} for b, rate in zip((1, 2), both, strict=True)
    ]} for role, both in rates.items()]  # fmt: skip
    data = chart.example | {"arms": arms, "crossing": {"16 bits": 1.6, "W8A8": None}}
    said = chart.looks(data)
    assert "16 bits overtake at about 2" in said and "W8A8 stays behind up to 2" in said and "W8A8 is the slowest at every batch: 2.00 of 2.50 ms" in said
    assert "the least here is 0.50" in said
    assert any(trace.get("name", "").startswith("dotted: roof") for trace in chart.draw(data)["data"])
    many = [step | {"batch": 10**4, "flops": 2e11, "tokens_per_second": 1.0, "low": 1.0, "high": 1.0}]
    roofs = [chart.draw(data | {"arms": [arms[0] | {"peak": kind, "points": many}]})["data"][1]["y"][0] for kind in ("matmul_8", "matmul_16")]
    assert roofs[0] > roofs[1], "an arm that rounds inputs to int8 has int8's roof, whatever its role"
    wide = [arm if arm["role"] != "W8A8" else arm | {"points": [p | {"bytes": 4.5e7} for p in arm["points"]]} for arm in arms]
    assert "overhead" not in chart.looks(data | {"arms": wide}), "where reading takes the time, overhead is no reason"


def test_the_page_of_kernels_reads_what_peers_left() -> None:
    rows = [{"blocks": "24 blocks", "us": 2.0, "llama_cpp_us": 1.6, "ratio": 0.8}, {"blocks": "2 blocks", "why": "no memory"}]
    assert "takes 0.80 times as long (24 blocks)." in peers({"tokens": rows}) and peers({}) == "" and peers({"tokens": rows[1:]}) == ""
