"""Weight histogram of one layer: before, after, and the values that codes can represent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from explorer.figures import COLOURS, DASHES, Figure, Plot, layout, plot, with_metrics
from explorer.records import Report

EMPTY = 0.5  # where a bin without weights is drawn on the log axis, just below what is shown


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data: list[dict] = []
    found = with_metrics(reports, "weight_histogram", layer=layer)
    for _, report in found[:1]:
        value = report.value("weight_histogram", layer)
        middles = [(a + b) / 2 for a, b in pairwise(value["edges"])]
        filled = {"fill": "tozeroy", "fillcolor": "rgba(127,127,127,0.25)", "line": {"color": COLOURS[0], "width": 1, "shape": "hvh"}}
        data.append({"type": "scatter", "mode": "lines", "x": middles, "y": [max(c, EMPTY) for c in value["before"]], "name": "16-bit weights"} | filled)
    for i, report in found:
        if report.value("weight_error", layer) is None:
            continue
        value = report.value("weight_histogram", layer)
        middles = [(a + b) / 2 for a, b in pairwise(value["edges"])]
        line = {"color": COLOURS[i % 5], "dash": DASHES[i % 5], "width": 1.6, "shape": "hvh"}
        counts = value["after"]
        data.append({"type": "scatter", "mode": "lines", "x": middles, "y": [max(c, EMPTY) for c in counts], "name": report.name, "line": line})
        if grid := value["grid"]:
            marker = {"symbol": "line-ns-open", "size": 9, "color": COLOURS[i % 5], "line": {"width": 1 if len(grid) <= 64 else 0.5}}
            data.append(
                {"type": "scatter", "mode": "markers", "x": grid, "y": [-0.03 * (i + 1)] * len(grid), "yaxis": "y2", "marker": marker,
                 "showlegend": False, "name": f"grid of {report.name}, first group", "hovertemplate": "%{x:.5f}"}
            )  # fmt: skip
    shape = layout("weight", "weights per bin (log)", 380, yaxis={"type": "log", "dtick": 1, "domain": [0.22, 1]}, xaxis={"anchor": "y2"})
    top = max((max(trace["y"]) for trace in data if trace["mode"] == "lines"), default=1)
    shape["yaxis"]["range"] = [math.log10(0.7), math.log10(2 * top)]
    shape["yaxis2"] = {"domain": [0, 0.15], "visible": False, "range": [-0.17, 0.01]}
    return plot(data, shape)


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(reports, "weight_histogram", layer=layer):
        error = report.value("weight_error", layer)
        parts.append(f"{report.name}: " + ("weights unchanged" if error is None else f"relative weight error {error:.4f}"))
    return f"Weights of {layer}. " + "; ".join(parts) + "." if parts else "No weight histogram measured."


FIGURE = Figure(
    "weights", "Weights and their grid",
    "See how few values the ticks (the grid of the layer's first group) leave of the 16-bit weights (filled), and where the dequantized ones pile up.",
    "A code of b bits can name 2^b values. The scale stretches that grid over the weights that share it; one large weight stretches it for "
    "all of them, which is why small groups help. Dequantized histograms look comb-like when few grids are in play and fill in when every "
    "group has its own scale.",
    ("weight_histogram",), draw, summary, by_layer=True, wide=True, order=5, tab="weights",
)  # fmt: skip
