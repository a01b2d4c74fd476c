"""Error map: where in a weight matrix the rounding error sits."""

from __future__ import annotations

from typing import Any

from explorer.figures import Chart, Plot, layout, plot


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("input channel", "output row", 420, yaxis={"autorange": "reversed"}, margin={"t": 8})
    if not data:
        return plot([], shape, "Choose a quantized configuration.")
    rows, columns = data["block"]
    heat = {
        "type": "heatmap", "z": data["cells"], "x0": (columns - 1) / 2, "dx": columns, "y0": (rows - 1) / 2, "dy": rows, "colorscale": "Viridis",
        "colorbar": {"title": {"text": "mean |error|", "side": "right"}, "thickness": 10, "tickformat": ".3~g"},
        "hovertemplate": "row %{y:.0f}, channel %{x:.0f}<br>mean |error| %{z:.3g}<extra></extra>",
    }  # fmt: skip
    return plot([heat], shape)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "Choose a quantized configuration to see where its error sits."
    rows, columns = data["block"]
    along_rows = [sum(row) / len(row) for row in data["cells"]]
    along_columns = [sum(column) / len(column) for column in zip(*data["cells"], strict=True)]
    by_row, by_column = (max(v) / max(min(v), 1e-30) for v in (along_rows, along_columns))
    where = "rows" if by_row > by_column else "channels"
    noise = "nothing is lost" if data["sqnr"] is None else f"{data['sqnr']:.1f} dB signal to noise"
    return (
        f"{data['label']} on {data['layer']}, {data['shape'][0]:,} x {data['shape'][1]:,}: {noise}. One cell is the mean of {rows} rows x {columns} channels. "
        f"The error differs more between {where} (strongest over weakest {max(by_row, by_column):.1f}) than the other way ({min(by_row, by_column):.1f}). "
        f"The largest single error, {data['largest']:.4g}, is in row {data['at'][0]}, channel {data['at'][1]}."
    )


CHART = Chart(
    "error_map", "Where the error sits",
    "See whether the error is spread evenly or in stripes: horizontal stripes are rows with large weights, vertical ones are input channels.",
    "Rounding error follows the scale: a row or group with one large weight has wide steps and so larger errors everywhere in it. That is why "
    "per-tensor maps are flat and group-wise maps are patchy. GPTQ and AWQ move error between input channels on purpose, from those that meet "
    "large inputs to those that do not, which shows as vertical stripes.",
    draw, summary,
    {"cells": [[0.01, 0.02], [0.03, 0.01]], "block": [11, 4], "shape": [22, 8], "sqnr": 18.2, "label": "RTN 4-bit g64", "layer": "layers.0.mlp.up_proj",
     "largest": 0.05, "at": [3, 4]},
)  # fmt: skip
