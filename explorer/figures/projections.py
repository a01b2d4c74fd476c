"""Projections: signal to noise of every weight matrix of one configuration, by block and by what the matrix does."""

from __future__ import annotations

import math
from typing import Any

from explorer.figures import Chart, Plot, finite, layout, plot
from explorer.records import Report


def table_of(report: Report) -> dict[str, Any]:
    """{label, blocks, projections, cells (dB, [projections][blocks], None where there is none), picks (each cell's layer)} from a report's weight errors."""
    found: dict[str, dict[int, float]] = {}
    names: dict[tuple[str, int], str] = {}
    for name, error in report.by_layer("weight_error").items():
        block = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if finite(error) and error > 0:
            found.setdefault(name.rsplit(".", 1)[-1], {})[block] = round(-20 * math.log10(error), 2)
            names[name.rsplit(".", 1)[-1], block] = f"layer:{name}"
    blocks = sorted({block for row in found.values() for block in row})
    cells = [[row.get(b) for b in blocks] for row in found.values()]
    clicked = [[names.get((kind, b)) for b in blocks] for kind in found]
    return {"label": report.name, "blocks": blocks, "projections": list(found), "cells": cells, "picks": clicked} if found else {}


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("block", "", 320, xaxis={"dtick": 1 if len(data.get("blocks", [])) <= 16 else None}, yaxis={"autorange": "reversed"}, margin={"l": 90})
    if not data:
        return plot([], shape, "Choose a quantized configuration.")
    heat = {
        "type": "heatmap", "z": data["cells"], "x": data["blocks"], "y": data["projections"], "colorscale": "Viridis", "xgap": 1, "ygap": 1,
        "meta": {"picks": data.get("picks")},
        "colorbar": {"title": {"text": "dB", "side": "right"}, "thickness": 10}, "hovertemplate": "%{y}, block %{x}: %{z:.1f} dB<extra></extra>",
    }  # fmt: skip
    return plot([heat], shape)


def summary(data: dict[str, Any]) -> str:
    cells = [
        (v, p, b) for p, row in zip(data.get("projections", []), data.get("cells", []), strict=True) for b, v in zip(data["blocks"], row, strict=True) if v
    ]
    if not cells:
        return "Choose a quantized configuration to see all its matrices."
    worst, best = min(cells), max(cells)
    return f"{data['label']}: from {worst[0]:.1f} dB ({worst[1]} of block {worst[2]}) to {best[0]:.1f} dB ({best[1]} of block {best[2]})."


CHART = Chart(
    "projections", "All matrices at a glance",
    "See which kind of matrix loses most to rounding (a dark row), and whether it gets worse with depth (a gradient from left to right).",
    "Matrices differ in how heavy the tails of their weights are, and the tails set the scale. A difference of 6 dB is worth one bit. It is the weight "
    "error only: a matrix that meets small inputs can lose much here and little in the model, which is what the Layers tab measures.",
    draw, summary, {"label": "RTN 4-bit g64", "blocks": [0, 1], "projections": ["q_proj"], "cells": [[18.0, None]]},
)  # fmt: skip
