"""Error by layer: how far the outputs (and the weights) of each layer moved."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, DASHES, MARKERS, Figure, Plot, layout, picks, plot, short_layer
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data: list[dict] = []
    for i, report in enumerate(reports):
        for metric, dash, mode, opacity in (("output_error", DASHES[i % 5], "lines+markers", 1.0), ("weight_error", "dot", "lines", 0.5)):
            values = report.by_layer(metric)
            if values:
                data.append(
                    {"type": "scatter", "mode": mode, "x": [short_layer(name) for name in values], "y": list(values.values()),
                     "ids": picks(values),
                     "opacity": opacity, "legendgroup": i, "name": f"{report.name}, {metric.replace('_', ' ')}", "showlegend": metric == "output_error",
                     "line": {"color": COLOURS[i % 5], "dash": dash, "width": 1.4},
                     "marker": {"symbol": MARKERS[i % 5], "size": 5}}
                )  # fmt: skip
    return plot(data, layout("layer", "relative error (log)", 420, yaxis={"type": "log"}, xaxis={"tickangle": -60, "tickfont": {"size": 10}}))


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for report in reports:
        values = report.by_layer("output_error")
        if values:
            worst = max(values, key=lambda name: values[name])
            parts.append(f"{report.name}: largest output error {values[worst]:.4f} in {short_layer(worst)}")
    return "; ".join(parts) + "." if parts else "No quantized layers measured."


FIGURE = Figure(
    "layers", "Error by layer",
    "See which layers stand out, and that GPTQ's weight error (faint dots) lies above plain rounding's while its output error lies below.",
    "The output error is what the next layer feels: ||W'x - Wx|| / ||Wx|| on held-out inputs of the 16-bit model. Weight error only matters "
    "where inputs are large, which is why minimising it is the wrong goal and GPTQ trades it away.",
    ("output_error",), draw, summary, wide=True, order=4, tab="layers",
)  # fmt: skip
