"""Decoding speed: seconds of every single token, and the bandwidth limit beside the measurement."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.answers import gain
from explorer.figures import COLOURS, Figure, Plot, layout, plot, with_metrics
from explorer.findings import counted, one_rate
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data: list[dict] = []
    for i, report in with_metrics(one_rate(reports), "decode_latencies", "decode_limit"):
        limit = report.find("decode_limit")
        milliseconds = [1000 * s for s in report.value("decode_latencies")]
        name = report.name
        data.append(
            {"type": "box", "orientation": "h", "x": milliseconds, "y": [name] * len(milliseconds), "name": name, "boxpoints": "all", "jitter": 0.5,
             "pointpos": 0, "marker": {"color": COLOURS[i % 5], "size": 3}, "showlegend": False}
        )  # fmt: skip
        data.append(
            {"type": "scatter", "mode": "markers", "x": [1000 / limit.value], "y": [name], "name": "bandwidth limit (estimated)",
             "hovertemplate": f"%{{x:.3f}} ms, {counted(limit, report)}",
             "marker": {"symbol": "line-ns-open", "size": 22, "color": COLOURS[2], "line": {"width": 2.5}}, "showlegend": i == 0}
        )  # fmt: skip
    drawn = [value for trace in data for value in trace["x"] if value > 0]
    steps = "D2" if drawn and max(drawn) < 100 * min(drawn) else 1  # 1, 2, 5 in two decades; more of them leave room for powers of ten only
    return plot(data, layout("ms per token (log)", "", xaxis={"type": "log", "dtick": steps}, yaxis={"autorange": "reversed"}))


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(one_rate(reports), "decode_tokens_per_second", "decode_bound"):
        speed = report.find("decode_tokens_per_second")
        bound = report.value("decode_bound")
        beside = gain(report)
        times = f", {beside.value:.2f} times as fast as 16 bits in the same run ({beside.low:.2f} to {beside.high:.2f})" if beside else ""
        parts.append(f"{report.name}: {speed.value:.0f} tokens/s ({speed.low:.0f} to {speed.high:.0f}){times}, bound by {bound}")
    return "; ".join(parts) + "." if parts else "No speed measured."


FIGURE = Figure(
    "speed", "Decoding speed",
    "See the gap between the dots (measured tokens) and the orange bar (reading all weights at memory bandwidth): a wide gap is overhead.",
    "Decoding reads every weight once a token, so on a large model fewer bits mean proportionally more tokens per second. On a small model the "
    "fixed cost of launching each operation dominates and fewer bits change nothing, or even slow it down. Do not read this model's speeds as "
    "a 7B model's. The dots of two configurations were timed in different minutes, and a machine's pace changes: to compare, take the speed-up over 16 bits, "
    "for which both loops ran in turn.",
    ("decode_latencies", "decode_limit"), draw, summary, order=3,
)  # fmt: skip
