"""What the quantization costs in quality: paired perplexity change and KL divergence, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, MARKERS, Figure, Plot, finite, layout, name_of, plot, span, with_metrics
from explorer.records import Report


def _points(reports: Sequence[Report], metric: str, axes: tuple[str, str]) -> list[dict]:
    data = []
    for i, report in with_metrics(reports, metric, "bits_per_weight"):
        found = report.find(metric)
        if not finite(found.value) or report.experiment.spec.method == "none":
            continue
        up, down = span(found)
        data.append(
            {"type": "scatter", "mode": "markers", "x": [report.value("bits_per_weight")], "y": [found.value], "name": name_of(report),
             "xaxis": axes[0], "yaxis": axes[1], "showlegend": axes[0] == "x", "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5], "size": 11},
             "error_y": {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.5}}
        )  # fmt: skip
    return data


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data = _points(reports, "perplexity_delta", ("x", "y")) + _points(reports, "kld_mean", ("x2", "y2"))
    shape = layout("stored bits per weight", "perplexity change, % (paired)", xaxis={"domain": [0, 0.44]})
    shape["xaxis2"] = shape["xaxis"] | {"domain": [0.58, 1]}
    shape["yaxis2"] = shape["yaxis"] | {"anchor": "x2", "type": "log", "title": {"text": "mean KL divergence, nats (log)"}}
    return plot(data, shape)


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(reports, "perplexity_delta", "kld_mean", "bits_per_weight"):
        delta, kld = report.find("perplexity_delta"), report.find("kld_mean")
        if report.experiment.spec.method == "none":
            continue
        interval = f" (95% interval {delta.low:+.2f} to {delta.high:+.2f})" if finite(delta.low) else ""
        bits = report.value("bits_per_weight")
        parts.append(f"{name_of(report)} at {bits:.2f} bits: perplexity {delta.value:+.2f}%{interval}, KL divergence {kld.value:.4f} nats")
    return "; ".join(parts) + "." if parts else "No quantized configuration measured yet."


FIGURE = Figure(
    "quality", "Quality against bits",
    "See the lower left corner: few bits and little change. Bars are 95% intervals; a bar that crosses zero means no measurable change.",
    "Both models score the same tokens, so the difference is paired and far sharper than two perplexities side by side. KL divergence compares "
    "whole distributions and shows damage long before the perplexity moves. Bits count every scale and zero-point as stored, so 4-bit weights "
    "in groups of 64 cost 4.25.",
    ("perplexity_delta", "kld_mean"), draw, summary, order=0,
)  # fmt: skip
