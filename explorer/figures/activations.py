"""Activation histogram: what goes into one layer of the 16-bit model."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, Figure, Plot, layout, plot, with_metrics
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    found = with_metrics(reports, "activation_histogram", layer=layer)[:1]
    data = []
    for _, report in found:
        value = report.value("activation_histogram", layer)
        middles = [(a + b) / 2 for a, b in zip(value["edges"], value["edges"][1:], strict=False)]
        bars = {
            "type": "bar",
            "x": middles,
            "y": [c or None for c in value["counts"]],
            "name": "inputs of the layer",
            "marker": {"color": COLOURS[1]},
        }
        data.append(bars)
    return plot(data, layout("activation", "values per bin (log)", yaxis={"type": "log", "dtick": 1}, bargap=0, showlegend=False))


def summary(reports: Sequence[Report], layer: str) -> str:
    for _, report in with_metrics(reports, "activation_histogram", "activation_kurtosis", layer=layer)[:1]:
        edges = report.value("activation_histogram", layer)["edges"]
        bad = report.find("activation_histogram", layer).bad
        broken = f" {bad} values are NaN or infinite and left out." if bad else ""
        kurtosis = report.value("activation_kurtosis", layer)
        return f"Inputs of {layer} run from {edges[0]:.2f} to {edges[-1]:.2f}; kurtosis {kurtosis:.1f} (3 is normal).{broken}"
    return "No activation histogram measured."


FIGURE = Figure(
    "activations", "Activations",
    "See how far the thin tails reach beyond the bulk: a scale that must cover them leaves few codes for everything else.",
    "Activations are harder to quantize than weights because a few values are many times larger than the rest. Kurtosis measures that: 3 for "
    "a normal distribution, hundreds where outliers rule. All configurations share this figure: it is the 16-bit model's.",
    ("activation_histogram",), draw, summary, by_layer=True, order=6, tab="activations",
)  # fmt: skip
