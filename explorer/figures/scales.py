"""Scales: how large the steps of the grid are over a matrix, as a distribution and by row."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from explorer.figures import COLOURS, Chart, Plot, layout, plot


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("scale (log)", "groups", 420, xaxis={"type": "log", "tickformat": ".3~g"}, yaxis={"domain": [0.6, 1]}, showlegend=False, bargap=0)
    if not data:
        return plot([], shape, "Choose a quantized configuration.")
    edges, counts, runs = data["scale_edges"], data["scale_counts"], len(data["scales"]["median"])
    middles = [(a * b) ** 0.5 for a, b in pairwise(edges)]
    rows = [round((i + 0.5) * data["scale_rows"] / runs) for i in range(runs)]
    bars = {"type": "bar", "x": middles, "y": counts, "width": [b - a for a, b in pairwise(edges)], "marker": {"color": COLOURS[1]},
            "hovertemplate": "%{y} scales near %{x:.3g}<extra></extra>"}  # fmt: skip
    axes = {"type": "scatter", "xaxis": "x2", "yaxis": "y2", "x": rows}
    band = [
        axes | {"mode": "lines", "y": data["scales"]["lowest"], "line": {"width": 0}, "hoverinfo": "skip"},
        axes
        | {"mode": "lines", "y": data["scales"]["highest"], "line": {"width": 0}, "fill": "tonexty", "fillcolor": "rgba(10,122,191,0.25)", "hoverinfo": "skip"},
    ]
    middle = axes | {"mode": "lines+markers", "y": data["scales"]["median"], "line": {"color": COLOURS[1], "width": 1.4}, "marker": {"size": 3},
                     "hovertemplate": "row %{x}: median scale %{y:.3g}<extra></extra>"}  # fmt: skip
    base = shape["xaxis"]
    shape["xaxis2"] = {k: v for k, v in base.items() if k not in ("type", "tickformat")} | {"title": {"text": "output row"}, "anchor": "y2"}
    shape["yaxis2"] = shape["yaxis"] | {"title": {"text": "scale"}, "domain": [0, 0.36], "tickformat": ".3~g", "rangemode": "tozero"}
    shape["xaxis"] = base | {"anchor": "y"}
    return plot([bars, *band, middle], shape)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "No scales are shown yet."
    lowest, highest = min(data["scales"]["lowest"]), max(data["scales"]["highest"])
    count = data["scale_rows"] * data["groups"]
    if count == 1:
        return f"{data['label']}: a single scale of {highest:.4g} for the whole matrix."
    each = f"{data['groups']} a row" if data["groups"] > 1 else "one a row"
    spread = f"from {lowest:.3g} to {highest:.3g}, a factor of {highest / max(lowest, 1e-30):.1f}"
    return f"{data['label']}: {count:,} scales, {each}, {spread}; one scale for all would have to be the largest."


CHART = Chart(
    "scales", "Scales by group",
    "See how far the scales spread (above), and which rows have large ones (below: median, lowest and highest group of each run of rows).",
    "A scale is the step between two codes, so it bounds the error: half a step. When scales differ by a factor of two, a shared scale wastes a whole "
    "bit on the groups with small weights. Every scale costs 16 bits, or 0.25 bits a weight in groups of 64, which is what that bit is bought with.",
    draw, summary,
    {"scale_edges": [0.01, 0.02, 0.04], "scale_counts": [3, 1], "scales": {"lowest": [0.01, 0.012], "median": [0.015, 0.02], "highest": [0.02, 0.04]},
     "groups": 2, "scale_rows": 2, "label": "RTN 4-bit g64"},
)  # fmt: skip
