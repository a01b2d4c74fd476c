"""Decoding speed: seconds of every single token, and the bandwidth limit beside the measurement."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, Figure, Plot, layout, plot, with_metrics
from explorer.findings import busy, counted, doubt, one_rate
from explorer.records import Report
from explorer.speeds import gain, judged, share


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data: list[dict] = []
    for i, report in with_metrics(one_rate(reports), "decode_latencies", "decode_limit"):
        limit = report.find("decode_limit")
        milliseconds = [1000 * s for s in report.value("decode_latencies")]
        name = f"{report.name}<br>(busy machine)" if busy(report) else report.name
        data.append(
            {"type": "box", "orientation": "h", "x": milliseconds, "y": [name] * len(milliseconds), "name": name, "boxpoints": "all", "jitter": 0.5,
             "pointpos": 0, "marker": {"color": COLOURS[i % 5], "size": 3}, "showlegend": False}
        )  # fmt: skip
        data.append(
            {"type": "scatter", "mode": "markers", "x": [1000 / limit.value], "y": [name], "name": "bandwidth limit (estimated)",
             "hovertemplate": ", ".join(filter(None, ("%{x:.3f} ms", counted(limit, report), doubt(report, "decode_limit")))),
             "marker": {"symbol": "line-ns-open", "size": 22, "color": COLOURS[2], "line": {"width": 2.5}}, "showlegend": len(data) == 1}
        )  # fmt: skip
    drawn = [value for trace in data for value in trace["x"] if value > 0]
    steps = "D2" if drawn and max(drawn) < 100 * min(drawn) else 1  # 1, 2, 5 in two decades; more of them leave room for powers of ten only
    return plot(data, layout("ms per token (log)", "", xaxis={"type": "log", "dtick": steps}, yaxis={"autorange": "reversed"}))


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = [told(report) for _, report in with_metrics(one_rate(reports), "decode_tokens_per_second")]
    return "; ".join(parts) + "." if parts else "No speed measured."


def told(report: Report) -> str:
    """A report's speed in words: beside 16 bits and beside the rate of memory, or that other work disturbed it."""
    speed, beside, part = report.find("decode_tokens_per_second"), gain(report), share(report)
    words = f"{report.name}: {speed.value:.0f} tokens/s ({speed.low:.0f} to {speed.high:.0f})"
    if note := busy(report):
        return f"{words}, but {note}"
    if beside:
        words += f", {beside.value:.2f} times as fast as 16 bits in the same run ({beside.low:.2f} to {beside.high:.2f} within it"
        words += ", no measurable difference)" if judged(report) == "same" else ")"
    return words if part is None else f"{words}, reading its bytes takes {part:.0f}% of a token's time"


FIGURE = Figure(
    "speed", "Decoding speed",
    "See the gap between the dots (measured tokens) and the orange bar (reading all weights at memory bandwidth): what of a token's time is not reading.",
    "Decoding reads every weight once a token, so where reading is all of the time, fewer bits mean proportionally more tokens per second. On a small model "
    "starting each operation, unpacking and arithmetic take their share, and some formats are slower than 16 bits. Do not read this model's speeds as "
    "a 7B model's. The dots of two configurations were timed in different minutes, and a machine's pace changes: to compare, take the speed-up over 16 bits, "
    "for which both loops ran in turn. What a busy machine disturbed is drawn with that note, and nothing is concluded from it.",
    ("decode_latencies", "decode_limit"), draw, summary, order=3,
)  # fmt: skip
