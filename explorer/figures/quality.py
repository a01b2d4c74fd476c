"""What the quantization costs in quality: paired perplexity change and KL divergence, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, MARKERS, Figure, Plot, finite, layout, plot, span, with_metrics
from explorer.records import Report

FLOOR = 1e-3  # what is drawn for a measured decrease, which has no place on a log axis


def _points(reports: Sequence[Report], metric: str, axes: tuple[str, str]) -> list[dict]:
    data = []
    for i, report in with_metrics(reports, metric, "bits_per_weight"):
        found = report.find(metric)
        if not finite(found.value) or report.experiment.spec.method == "none":
            continue
        limit = found.value <= 0 or (finite(found.low) and found.low <= 0)  # not told from zero: its upper limit is drawn, hollow
        height = max(found.value, found.high if finite(found.high) else FLOOR, FLOOR) if limit else found.value
        up, down = (0.0, 0.0) if limit else span(found)
        interval = f", 95% interval {found.low:.4g} to {found.high:.4g}" if finite(found.low) else ""
        data.append(
            {"type": "scatter", "mode": "markers", "x": [report.value("bits_per_weight")], "y": [height], "name": report.name,
             "xaxis": axes[0], "yaxis": axes[1], "showlegend": axes[0] == "x", "legendgroup": i,
             "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5] + ("-open" if limit else ""), "size": 11, "line": {"width": 2 if limit else 0}},
             "hovertemplate": f"{found.value:.4g} {found.unit}{interval}, %{{x:.3f}} bits",
             "error_y": {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.5}}
        )  # fmt: skip
    return data


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data = _points(reports, "perplexity_delta", ("x", "y")) + _points(reports, "kld_mean", ("x2", "y2"))
    shape = layout("stored bits per weight", "perplexity increase, % (log)", xaxis={"domain": [0, 0.44]}, yaxis={"type": "log"})
    shape["xaxis2"] = shape["xaxis"] | {"domain": [0.58, 1]}
    shape["yaxis2"] = shape["yaxis"] | {"anchor": "x2", "title": {"text": "mean KL divergence, nats (log)"}}
    return plot(data, shape)


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(reports, "perplexity_delta", "kld_mean", "bits_per_weight"):
        delta, kld = report.find("perplexity_delta"), report.find("kld_mean")
        if report.experiment.spec.method == "none":
            continue
        interval = f" (95% interval {delta.low:+.2f} to {delta.high:+.2f})" if finite(delta.low) else ""
        bits = report.value("bits_per_weight")
        parts.append(f"{report.name} at {bits:.2f} bits: perplexity {delta.value:+.2f}%{interval}, KL divergence {kld.value:.4f} nats")
    return "; ".join(parts) + "." if parts else "No quantized configuration measured yet."


FIGURE = Figure(
    "quality", "Quality against bits",
    "See the lower left corner: few bits and little change. Bars are 95% intervals; a hollow marker is an upper limit, its change is not measurable.",
    "Both models score the same tokens, so the difference is paired and far sharper than two perplexities side by side. KL divergence compares "
    "whole distributions and shows damage long before the perplexity moves. Bits count every scale and zero-point as stored, so 4-bit weights "
    "in groups of 64 cost 4.25.",
    ("perplexity_delta", "kld_mean"), draw, summary, wide=True, order=0,
)  # fmt: skip
