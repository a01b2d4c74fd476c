"""What the quantization costs in perplexity: the paired change with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import Figure, Plot, against_bits, with_metrics
from explorer.records import Report, change


def draw(reports: Sequence[Report], layer: str) -> Plot:
    return against_bits(reports, "perplexity_delta", "perplexity increase, % (log)")


def summary(reports: Sequence[Report], layer: str) -> str:
    parts = []
    for _, report in with_metrics(reports, "perplexity_delta", "bits_per_weight"):
        delta = report.find("perplexity_delta")
        if report.experiment.spec.is_baseline:
            continue
        words, interval = change(delta.value, delta.low, delta.high)
        parts.append(f"{report.name} at {report.value('bits_per_weight'):.2f} bits: {words}" + (f" ({interval})" if interval else ""))
    return "Perplexity change with 95% interval. " + "; ".join(parts) + "." if parts else "No quantized configuration measured yet."


FIGURE = Figure(
    "quality", "Perplexity against bits",
    "See the lower left corner: few bits and little change. Bars are 95% intervals; a hollow marker is an upper limit, its change is not measurable.",
    "Both models score the same tokens, so the difference is paired and far sharper than two perplexities side by side. Bits count every scale "
    "and zero-point as stored, so 4-bit weights in groups of 64 cost 4.25.",
    ("perplexity_delta",), draw, summary, order=0,
)  # fmt: skip
