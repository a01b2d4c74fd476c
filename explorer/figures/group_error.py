"""Error by column group of one layer: a healthy run beside one with a bug."""

from __future__ import annotations

from statistics import median
from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, Chart, Plot, layout, plot, short_layer


def draw(data: dict[str, Any]) -> Plot:
    traces = []
    for i, run in enumerate(data.get("runs", [])):
        if run["errors"]:
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "x": list(range(1, len(run["errors"]) + 1)), "y": run["errors"], "name": run["label"],
                 "line": {"color": COLOURS[i], "dash": DASHES[i], "width": 1.6}, "marker": {"symbol": MARKERS[i], "size": 8},
                 "hovertemplate": "group %{x}: %{y:.4f}"}
            )  # fmt: skip
    return plot(traces, layout("group of columns", "relative weight error", yaxis={"rangemode": "tozero"}, showlegend=True))


def summary(data: dict[str, Any]) -> str:
    parts = []
    for run in data.get("runs", []):
        errors = run["errors"]
        if errors:
            worst = max(range(len(errors)), key=lambda i: errors[i])
            middle = median(errors) or 1.0
            parts.append(f"{run['label']}: middle {median(errors):.4f}, largest {errors[worst]:.4f} in group {worst + 1} ({errors[worst] / middle:.1f} times)")
    return f"{short_layer(data.get('layer', ''))}: " + "; ".join(parts) + "." if parts else "Nothing measured yet."


CHART = Chart(
    "group_error", "Error by group of columns",
    "See whether one group stands out: healthy groups differ by chance, a stale scale puts the error of one group above all others.",
    "Each point is the relative error of the weights in one group of columns, over all rows of the chosen layer. Groups share bits and method, so their "
    "errors are alike; what differs is the spread of their weights. A bug in the loop over groups hits the same group in every layer, which is how a detector "
    "tells it from chance: it takes the middle over all layers.",
    draw, summary, {"layer": "layers.0.mlp.up_proj", "runs": [{"label": "healthy", "errors": [0.11, 0.1]}, {"label": "with a bug", "errors": [0.1, 0.3]}]},
)  # fmt: skip
