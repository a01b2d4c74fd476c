"""What the product says of speed and size: nothing is concluded from disturbed times, what is judged holds beyond one run, and causes follow from numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re

import pytest

from explorer.answers import answers, size
from explorer.commands.run import table
from explorer.commands.sweep import notes
from explorer.export import as_csv, as_json, noted
from explorer.figures import figures, limits, tradeoffs
from explorer.figures.labels import LETTER, LINE, spaced
from explorer.findings import one_rate
from explorer.learn.facts import Facts
from explorer.recorded import SEEDS
from explorer.records import Measurement, Report, report_from
from explorer.repeats import between
from explorer.speeds import against, fewer, judged, speed
from explorer.wide import rows

RECORDED = [report_from(data) for data in json.loads(SEEDS.read_text())]
BASE, FOUR = RECORDED[0], next(r for r in RECORDED if r.name == "RTN 4-bit g64")
CLAIMS = re.compile("times as fast as|faster|slower|overhead|% of a token|bound by|no measurable difference", re.IGNORECASE)


def with_(report: Report, *new: Measurement, **values: float) -> Report:
    """With other measurements, by name in place of its own."""
    new = (*new, *(Measurement(name, value) for name, value in values.items()))
    kept = tuple(m for m in report.measurements if m.metric not in {n.metric for n in new})
    return dataclasses.replace(report, measurements=(*kept, *new))


def raced(report: Report, low: float, high: float, metric: str = "decode_speedup") -> Report:
    return with_(report, Measurement(metric, math.sqrt(low * high), "x", low=low, high=high, n=6))


BUSY = with_(raced(raced(FOUR, 2.14, 20.06), 0.1, 0.2, "first_token_speedup"), decode_waited=66.0)
FAST = raced(FOUR, 1.99, 2.01)


def test_nothing_is_concluded_from_disturbed_times() -> None:
    [first, *_] = answers(BUSY, BASE)
    said = [first.text, *first.facts, figures()["speed"].summary([BUSY], "")]
    assert judged(BUSY) == judged(BUSY, "first_token_speedup") == "disturbed"
    assert not any(CLAIMS.search(line) for line in said), said
    assert "disturbed" in first.text and "threads waited 66%" in speed(BUSY)[-1] and "threads waited 66%" in said[-1]
    late = with_(FAST, decode_bandwidth_waited=50.0)
    assert not any("% of a token" in line for line in (*speed(late), answers(late, BASE)[0].text, figures()["speed"].summary([late], "")))
    assert judged(late) == "faster", "the two loops were not disturbed, only the reading of memory"


def test_every_row_and_export_of_a_disturbed_speed_says_so() -> None:
    pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    from explorer.table import SECTIONS, cell
    from explorer.ui.tabs.tradeoffs.points_table import numbers

    timed = [row for row in SECTIONS["Speed"] if row.metric != "quantize_seconds" and BUSY.find(row.metric)]
    assert len(timed) == 5
    for row in timed:
        shown = cell(row, BUSY, BASE, False)
        assert "class=''" in shown and "the machine was busy" in shown.split("<small>", 1)[1], row.metric
    point = tradeoffs.point_of(BUSY, "a", "measured now")
    assert all("machine busy" in text for _, text in numbers(point)[3:5]) and "machine busy" not in str(numbers(tradeoffs.point_of(FAST, "b", "now")))
    assert "(busy machine)" in str(figures()["speed"].draw([BUSY], "")["data"][0]["y"])
    lines = {row["metric"]: row for row in csv.DictReader(io.StringIO(as_csv([BUSY]))) if not row["layer"]}
    assert all("busy" in lines[row.metric]["note"] for row in timed) and lines["kld_mean"]["note"] == ""
    assert lines["decode_speedup"]["interval"] == "95% over rounds within the run"
    assert "busy" in json.loads(as_json([BUSY]))[0]["notes"][0] and noted(FAST)["notes"] == []
    assert "busy" in rows([BUSY])[0]["speed_note"] and rows([FAST])[0]["speed_note"] == "" and any(BUSY.name in line for line in notes([FAST, BUSY]))
    printed = next(line for line in table(BUSY).splitlines() if line.startswith("decode_speedup"))
    assert "within this run" in printed and "disturbed" in printed and "--remeasure" in table(BUSY) and "disturbed" not in table(FAST)
    assert not Facts({"a": BUSY}).undisturbed("a") and Facts({"a": FAST}).undisturbed("a")


def test_a_disturbed_point_is_no_winner_and_beats_none() -> None:
    rivals = [with_(raced(FOUR, 2.0, 2.1), Measurement("kld_mean", kld, "nats", low=0.9 * kld, high=1.1 * kld)) for kld in (0.02, 0.03)]
    best = with_(BUSY, Measurement("kld_mean", 0.001, "nats", low=0.0009, high=0.0011))
    points = [tradeoffs.point_of(r, str(i), "measured now") for i, r in enumerate(one_rate([best, *rivals]))]
    points = [p | {"name": f"point {p['key']}", "windows": {}} for p in points]
    _, placed = tradeoffs.set_out({"points": points, "view": "latency"})
    standing = {p["key"]: kind for p, *_, kind in placed}
    assert standing["0"] == "disturbed" and "best" in (standing["1"], standing["2"]) and standing["1"] != "beaten"
    assert placed[0][1][1:] == (pytest.approx(1 / 20.06), pytest.approx(1 / 2.14)), "its own interval"
    said = tradeoffs.summary({"points": points, "view": "latency"})
    assert "Of 2 configurations" in said and "Timed on a busy machine" in said and "point 0" in said.split("busy machine")[1]
    sizes = {p["key"]: kind for p, *_, kind in tradeoffs.set_out({"points": points, "view": "bits"})[1]}
    assert sizes["0"] == "best", "a busy machine changes no size"
    assert "threads waited 66%" in tradeoffs.hover(points[0])
    told = tradeoffs.summary({"points": points, "view": "roofline"})
    assert "point 0" not in told.split("takes")[0] and "nothing is concluded" in told and "overhead" not in told + limits.LOOK
    assert tradeoffs.draw({"points": points, "view": "roofline"})["data"][2]["marker"]["symbol"][0].endswith("-open")
    assert tradeoffs.summary({"points": points[:1], "view": "roofline"}).startswith("Timed on a busy machine")
    work = {p["key"]: p["work"] for p in points}
    assert work["0"] == "" and work["1"], "it says nothing of how far runs differ"


def test_a_ratio_is_shown_from_low_to_high() -> None:
    pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    from explorer.ui.tabs.tradeoffs.points_table import numbers

    shown = numbers(tradeoffs.point_of(raced(FOUR, 0.45, 12.88), "a", "measured now"))[3][1]
    assert "0.45 to 12.88" in shown and "±" not in shown


def test_a_speed_is_judged_beyond_what_runs_differ_by() -> None:
    inside, beyond = math.sqrt(between()), between() ** 2
    assert judged(raced(FOUR, inside * 0.999, inside * 1.001)) == judged(raced(FOUR, 0.999 / inside, 1.001 / inside)) == "same"
    assert judged(raced(FOUR, beyond * 0.99, beyond * 1.01)) == "faster" and judged(raced(FOUR, 0.99 / beyond, 1.01 / beyond)) == "slower"
    told = against(raced(FOUR, inside * 0.999, inside * 1.001), BASE)
    assert told.startswith("No measurable difference") and "within this run" in told and "runs of the same work differ" in told
    wide = against(raced(FOUR, 0.45, 12.88), BASE)
    assert wide.startswith("No measurable difference") and "It is" not in wide
    place = tradeoffs.aside(tradeoffs.point_of(raced(FOUR, 1.99, 2.01), "a", "measured now"), "latency")
    assert place[2] / place[1] == pytest.approx(between() ** 2, rel=1e-3), "a single run's bar is that from run to run"


def test_the_cause_follows_from_bytes_and_times() -> None:
    times = fewer(FOUR, BASE)
    assert times == pytest.approx((BASE.value("decode_bandwidth") / BASE.value("decode_limit")) / (FOUR.value("decode_bandwidth") / FOUR.value("decode_limit")))
    told = against(FAST, BASE)
    assert (
        f"{times:.1f} times fewer bytes and takes 50% less time (50 to 50); were time in proportion to bytes it would be {100 - 100 / times:.0f}% less" in told
    )
    more = against(raced(FOUR, 2 * times, 2.02 * times), BASE)
    assert "more than bytes alone would save" in more and "in proportion" not in more
    assert "fewer bytes and takes 2.4 times as long. Unpacking costs more" in against(raced(FOUR, 0.4, 0.42), BASE)
    even = with_(FOUR, *(BASE.find(name) for name in ("decode_limit", "decode_bandwidth")))
    assert "no fewer bytes and takes 50% less time" in against(raced(even, 1.99, 2.01), BASE)
    slow = answers(raced(even, 0.4, 0.42), BASE)[0]
    assert "save" not in slow.text and "save" not in slow.facts[-1], "fewer bytes that are not read save nothing"
    for report in (FAST, raced(FOUR, 0.9, 1.1), raced(FOUR, 0.4, 0.42)):
        [first, *_] = answers(report, BASE)
        assert not re.search("overhead|limited by|not in the bytes", " ".join((first.text, *first.facts)))
    assert against(FAST, None).endswith(").")


def test_the_size_names_each_cause_with_its_bytes() -> None:
    two = with_(FOUR, bits_per_weight=2.25, bits_per_weight_resident=4.5)
    [_, told] = size(two, BASE)
    start, total, kept = BASE.value("weight_bytes"), two.value("weight_bytes"), two.value("memory_kept")
    stayed, wide = kept * (1 - 2.25 / 16) / 2**20, (total - kept - (start - kept) * 2.25 / 16) / 2**20
    assert f"adds {stayed:.1f} MiB" in told and f"Holding 4.50 bits a weight where 2.25 are stored adds {wide:.1f} MiB" in told
    assert stayed + wide == pytest.approx((total - start * 2.25 / 16) / 2**20), "together they are all that is missing"
    [_, alone] = size(with_(two, memory_kept=0.0, weight_bytes=start * 4.5 / 16), BASE)
    assert "stayed in 16 bits" not in alone and "Holding 4.50" in alone
    [_, whole] = size(with_(two, memory_kept=0.0, weight_bytes=start * 2.25 / 16, bits_per_weight_resident=2.25), BASE)
    assert "not" not in whole and "7.1 times less" in whole


def at(key: str, name: str, x: float, kld: float, metric: str = "bits_per_weight") -> dict:
    numbers = {metric: [x, 0.99 * x, 1.01 * x], "kld_mean": [kld, 0.99 * kld, 1.01 * kld]}
    return {"key": key, "name": name, "method": "rtn", "origin": "measured now", "device": "a CPU", "metrics": numbers}


def test_16_bits_far_beyond_the_points_take_no_width() -> None:
    points = [at("a", "2", 2.2, 1.0), at("b", "8", 8.0, 0.001), at("n", "16-bit baseline", 16.0, 0.0) | {"method": "none"}]
    shape = tradeoffs.draw({"points": points, "view": "bits"})["layout"]
    assert "shapes" not in shape and shape["annotations"][0]["xref"] == "paper" and "16 →" in shape["annotations"][0]["text"]
    points[1] = at("b", "14", 14.0, 0.001)
    assert tradeoffs.draw({"points": points, "view": "bits"})["layout"]["shapes"][0]["x0"] == 16.0


def test_names_in_the_figure_do_not_meet() -> None:
    names = ("absmax int8 per-channel", "zero-point int8 per-channel")
    points = [at("a", names[0], 1.71, 0.000516, "decode_speedup"), at("b", names[1], 1.37, 0.000477, "decode_speedup"),
              at("c", "FP8", 0.42, 0.1, "decode_speedup"), at("d", "4-bit", 2.4, 0.5, "decode_speedup")]  # fmt: skip
    drawn = tradeoffs.draw({"points": points, "view": "latency"})["data"]
    written = [text for trace in drawn if "text" in trace for text in trace["text"] if text]
    assert len(set(names) & set(written)) == 1 and "4-bit" in written
    long = "a name of thirty letters or so"
    found = spaced([("a", long, 0.0, 0.0), ("b", long, 0.1, LINE / 2), ("c", long, 0.1, 2 * LINE), ("d", long, 1.0, 0.0)], (0.0, 1.0), (0.0, 1.0))
    assert found == {"a": "top right", "c": "top right", "d": "top left"} and LETTER * len(long) < 0.5
