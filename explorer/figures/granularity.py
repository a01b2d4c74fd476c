"""Granularity: what more scales buy and what they cost, on one matrix."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, WAITING, Chart, Plot, finite, layout, plot


def name_of(point: dict[str, Any]) -> str:
    """Such as "groups of 64" or "one scale a row"."""
    shared = {"tensor": "one scale in all", "channel": "one scale a row"}
    return shared.get(point["granularity"], f"groups of {point['group_size']}")


def lines_of(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The finite points by what shares a scale."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in data.get("points", []):
        if finite(point["sqnr"]):
            found.setdefault(name_of(point), []).append(point)
    return found


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("stored bits per weight", "signal to noise, dB", 340, showlegend=True)
    traces = []
    for i, (name, points) in enumerate(lines_of(data).items()):
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": [p["stored"] for p in points], "y": [p["sqnr"] for p in points], "name": name,
             "line": {"color": COLOURS[i % 5], "dash": DASHES[i % 5], "width": 1.4}, "marker": {"symbol": MARKERS[i % 5], "size": 7},
             "text": [f"{p['bits']}-bit codes" for p in points], "hovertemplate": "%{text}, %{x:.3f} stored bits: %{y:.1f} dB"}
        )  # fmt: skip
    return plot(traces, shape, WAITING)


def summary(data: dict[str, Any]) -> str:
    four = [(name, p) for name, points in lines_of(data).items() for p in points if p["bits"] == 4]
    if not four:
        return "No curve is drawn yet."
    told = ", ".join(f"{name} {p['sqnr']:.1f} dB at {p['stored']:.3f} bits" for name, p in four)
    return f"At 4 bits: {told}. RTN, measured on {data['rows']} of {data['of']:,} rows; a bit more in every code adds about 6 dB."


CHART = Chart(
    "granularity", "Why scales come in groups",
    "See how the same codes climb as fewer weights share a scale, and how little further right (in stored bits) they move for it.",
    "Each bit halves the step and adds 6 dB. Smaller groups shorten the step as well, because a group's largest weight is smaller than the matrix's; a "
    "group of 64 costs a quarter of a bit and often gives as much as half a bit. Four bits are never four: the axis counts scales as they are stored.",
    draw, summary,
    {"points": [{"granularity": "tensor", "group_size": 0, "bits": 4, "stored": 4.0, "sqnr": 14.0},
                {"granularity": "group", "group_size": 64, "bits": 4, "stored": 4.25, "sqnr": 19.0},
                {"granularity": "group", "group_size": 64, "bits": 8, "stored": 8.25, "sqnr": None}], "rows": 128, "of": 384},
)  # fmt: skip
