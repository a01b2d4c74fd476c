"""Number line: the weights of one group above, the values their codes can name below, and which goes where."""

from __future__ import annotations

from collections import Counter
from typing import Any

from explorer.figures import COLOURS, GRID, WAITING, Chart, Plot, layout, plot

TOP, BOTTOM = 1.0, 0.0


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("weight", "", 300, showlegend=True, yaxis={"visible": False, "range": [-0.25, 1.2], "fixedrange": True}, margin={"l": 16, "r": 16})
    if not data:
        return plot([], shape, WAITING)
    values, back, start = data["values"], data["dequantized"], data["start"]
    lines_x: list[float | None] = []
    for value, target in zip(values, back, strict=True):
        lines_x += [value, target, None]
    lines = {"type": "scatter", "mode": "lines", "x": lines_x, "y": [TOP, BOTTOM, None] * len(values), "hoverinfo": "skip", "showlegend": False,
             "line": {"color": COLOURS[0], "width": 0.7}, "opacity": 0.6}  # fmt: skip
    own = data.get("changed", 0)
    traces = [lines]
    groups = (("weights of the group", range(own, len(values)), COLOURS[1], "circle", 7), ("typed or planted", range(own), COLOURS[2], "diamond", 11))
    for name, places, colour, symbol, size in groups:
        if places:
            text = [f"column {start + i}: {values[i]:.5g}, code {data['codes'][i]}, comes back as {back[i]:.5g}" for i in places]
            traces.append(
                {"type": "scatter", "mode": "markers", "x": [values[i] for i in places], "y": [TOP] * len(places), "name": name, "text": text,
                 "hovertemplate": "%{text}<extra></extra>", "marker": {"color": colour, "symbol": symbol, "size": size, "opacity": 0.75}}
            )  # fmt: skip
    uses = Counter(back)
    grid = sorted(set(data["grid"]))
    ticks = {"type": "scatter", "mode": "markers", "x": grid, "y": [-0.1] * len(grid), "name": "grid", "hovertemplate": "%{x:.5g}<extra>grid</extra>",
             "marker": {"symbol": "line-ns-open", "size": 16, "color": COLOURS[3], "line": {"width": 2}}}  # fmt: skip
    used = {"type": "scatter", "mode": "markers", "x": list(uses), "y": [BOTTOM] * len(uses), "name": "what comes back",
            "text": [f"{value:.5g}: {count} weights" for value, count in uses.items()], "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": COLOURS[3], "symbol": "square", "size": [min(20, 5 + 2 * count**0.5) for count in uses.values()], "opacity": 0.8}}  # fmt: skip
    shape["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": GRID, "width": 1}} for y in (TOP, BOTTOM)]
    return plot([*traces, ticks, used], shape)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "No group is shown yet."
    names, unused = len(set(data["grid"])), ""
    if data.get("kind") == "symmetric" and names < 2 ** data["bits"]:
        unused = " (the largest weight is the highest code, so symmetric codes never need the lowest)"
    used = len(set(data["dequantized"]))
    largest = max(map(abs, data["errors"]))
    whole = (
        f" The first {len(data['values'])} of {data['width']:,} weights that share the scale along the row are drawn."
        if len(data["values"]) < data["width"]
        else ""
    )
    lost = f" {100 * data['zeros']:.0f}% of the model's weights in it become exactly 0." if data["zeros"] > 0.3 else ""
    return f"{len(data['values'])} weights, {used} of {names} values in use{unused}; the largest error is {largest:.4g}.{lost}{whole}"


CHART = Chart(
    "number_line", "One group on the number line",
    "See each weight (above) fall to the nearest value of the grid (below); what lies between two ticks cannot be kept.",
    "All weights of a group share one scale, so the grid must reach as far as the largest of them. With b bits it has at most 2^b ticks, and one large "
    "weight pulls them apart for all others: plant an outlier and watch the rest fall onto zero. A codebook (NF4, FP4) places its ticks unevenly, "
    "dense where weights are many.",
    draw, summary,
    {"values": [0.1, -0.3, 0.02], "dequantized": [0.1, -0.3, 0.0], "codes": [9, 5, 8], "errors": [0.0, 0.0, -0.02], "start": 64, "grid": [-0.3, 0.0, 0.1],
     "width": 3, "zeros": 0.33, "changed": 1},
)  # fmt: skip
