"""Granularity: what more scales buy and what they cost, on one matrix."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, WAITING, Chart, Plot, finite, layout, plot


def name_of(point: dict[str, Any]) -> str:
    """Such as "groups of 64" or "one scale a row"."""
    shared = {"tensor": "one scale in all", "channel": "one scale a row"}
    return shared.get(point["granularity"], f"groups of {point['group_size']}")


def finite_points(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The points that have a signal-to-noise ratio."""
    return [point for point in data.get("points", []) if finite(point["sqnr"])]


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("what shares a scale (labels: stored bits)", "signal to noise, dB", 380, showlegend=True)
    traces = []
    points = finite_points(data)
    for i, bits in enumerate(sorted({p["bits"] for p in points})):
        line = [p for p in points if p["bits"] == bits]
        traces.append(
            {"type": "scatter", "mode": "lines+markers+text", "x": [name_of(p) for p in line], "y": [p["sqnr"] for p in line], "name": f"{bits}-bit codes",
             "line": {"color": COLOURS[i % 5], "dash": DASHES[i % 5], "width": 1.6}, "marker": {"symbol": MARKERS[i % 5], "size": 8},
             "text": [f"{p['stored']:.2f}" for p in line], "textposition": "top center", "textfont": {"size": 10}, "cliponaxis": False,
             "customdata": [p["stored"] for p in line],
             "hovertemplate": f"{bits}-bit codes, %{{x}}: %{{y:.1f}} dB at %{{customdata:.4f}} stored bits<extra></extra>"}
        )  # fmt: skip
    return plot(traces, shape, WAITING)


def summary(data: dict[str, Any]) -> str:
    four = [(name_of(p), p) for p in finite_points(data) if p["bits"] == 4]
    if not four:
        return "No curve is drawn yet."
    told = ", ".join(f"{name} {p['sqnr']:.1f} dB at {p['stored']:.3f} bits" for name, p in four)
    return f"At 4 bits: {told}. RTN, measured on {data['rows']} of {data['of']:,} rows; a bit more in every code adds about 6 dB."


CHART = Chart(
    "granularity", "Why scales come in groups",
    "See how the same codes climb from left to right as fewer weights share a scale, and how few stored bits (the labels) that costs.",
    "Each bit halves the step and adds 6 dB. Smaller groups shorten the step as well, because a group's largest weight is smaller than the matrix's; a "
    "group of 64 costs a quarter of a bit and often gives as much as half a bit. Four bits are never four: the labels count scales as they are stored.",
    draw, summary,
    {"points": [{"granularity": "tensor", "group_size": 0, "bits": 4, "stored": 4.0, "sqnr": 14.0},
                {"granularity": "group", "group_size": 64, "bits": 4, "stored": 4.25, "sqnr": 19.0},
                {"granularity": "group", "group_size": 64, "bits": 8, "stored": 8.25, "sqnr": None}], "rows": 128, "of": 384},
)  # fmt: skip
