"""Error through depth: how far the residual stream of each configuration has moved after each block."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, DASHES, MARKERS, Figure, Plot, finite, layout, plot, with_metrics
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data = []
    for i, report in with_metrics(reports, "residual_error"):
        if report.experiment.spec.is_baseline:
            continue
        errors = [value if finite(value) and value > 0 else None for value in report.value("residual_error")]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "x": list(range(len(errors))), "y": errors, "name": report.name,
             "line": {"color": COLOURS[i % 5], "dash": DASHES[i % 5]}, "marker": {"symbol": MARKERS[i % 5], "size": 7},
             "hovertemplate": "after block %{x}: %{y:.4f}"}
        )  # fmt: skip
    shape = layout("block", "relative error (log)", yaxis={"type": "log"}, xaxis={"dtick": 1} if data and len(data[0]["x"]) < 13 else {})
    return plot(data, shape | {"showlegend": True})


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(reports, "residual_error"):
        errors = report.value("residual_error")
        if report.experiment.spec.is_baseline or len(errors) < 2 or not (finite(errors[0]) and finite(errors[-1])) or not errors[0]:
            continue
        ratio = errors[-1] / errors[0]
        way = f"grows {ratio:.1f} times" if ratio > 1.1 else f"falls to {ratio:.2f} of that" if ratio < 0.9 else "stays about level"
        parts.append(f"{report.name}: {errors[0]:.4f} after block 0, {way} by block {len(errors) - 1} ({errors[-1]:.4f})")
    return "; ".join(parts) + "." if parts else "No quantized configuration was followed through the depth yet."


FIGURE = Figure(
    "drift", "Error through the depth of the model",
    "See whether a line climbs: each block adds its own error to what the blocks before it passed on.",
    "The error after a block is ||h' - h|| / ||h|| of the residual stream, both models reading the same evaluation windows, so it holds this block's "
    "error and all earlier ones. The stream itself grows from block to block as well, which is why the relative error can level off or even fall. A jump "
    "at one block names the place to spend bits; the sensitivity below measures each layer alone.",
    ("residual_error",), draw, summary, wide=True, order=5, tab="layers",
)  # fmt: skip
