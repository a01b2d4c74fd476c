"""Error by layer: how far the outputs (and the weights) of each layer moved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from explorer.figures import COLOURS, DASHES, MARKERS, Figure, Plot, finite, layout, picks, places, plot, short_layer
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data: list[dict] = []
    for i, report in zip(places(reports), reports, strict=True):
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
    return "; ".join(parts) + "." + traded(reports) if parts else "No quantized layers measured."


def traded(reports: Sequence[Report]) -> str:
    """What the first GPTQ here does to the two errors against plain rounding of the same bits and grid, "" without such a pair."""
    shape = ("bits", "granularity", "group_size", "symmetric")
    for ours in (r for r in reports if r.experiment.spec.method == "gptq"):
        alike = (r for r in reports if r.experiment.spec.method == "rtn" and all(r.experiment.spec.get(n) == ours.experiment.spec.get(n) for n in shape))
        for plain in alike:
            weight, output = (ratio(ours, plain, metric) for metric in ("weight_error", "output_error"))
            if weight and output:
                errors = f"{weight:.2f} times the weight error of {plain.name} and {output:.2f} times its output error"
                return f" In the median over layers {ours.name} has {errors}."
    return ""


def ratio(ours: Report, theirs: Report, metric: str) -> float | None:
    """The median over layers of one report's error to another's."""
    mine, other = ours.by_layer(metric), theirs.by_layer(metric)
    ratios = [mine[name] / other[name] for name in mine if finite(mine[name]) and finite(other.get(name)) and other[name] > 0]
    return median(ratios) if ratios else None


FIGURE = Figure(
    "layers", "Error by layer",
    "See which layers stand out, and whether the error of a layer's outputs (marked lines) goes along with that of its weights (faint dots).",
    "The output error is what the next layer feels: ||W'x - Wx|| / ||Wx|| on held-out inputs of the 16-bit model. Weight error only matters "
    "where inputs are large, which is why minimising it is the wrong goal and GPTQ trades it away.",
    ("output_error",), draw, summary, wide=True, order=4, tab="layers",
)  # fmt: skip
