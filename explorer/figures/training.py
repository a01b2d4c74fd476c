"""Training: the loss at every step of a method that fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, DASHES, Figure, Plot, layout, plot, with_metrics
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    data = []
    for i, report in with_metrics(reports, "training_loss"):
        losses = report.value("training_loss")
        line = {"color": COLOURS[i % 5], "dash": DASHES[i % 5], "width": 1.6}
        data.append({"type": "scatter", "mode": "lines", "x": list(range(1, len(losses) + 1)), "y": losses, "name": report.name, "line": line})
    return plot(data, layout("step", "divergence from the 16-bit model, nats (log)", 300, yaxis={"type": "log"}, showlegend=True))


def summary(reports: Sequence[Report], layer: str) -> str:
    found = [(r, r.value("training_loss")) for _, r in with_metrics(reports, "training_loss")]
    parts = [f"{r.name}: from {losses[0]:.3f} to {losses[-1]:.3f} nats in {len(losses)} steps" for r, losses in found]
    return "; ".join(parts) + "." if parts else "None of the configurations on the page trains."


FIGURE = Figure(
    "training", "Training",
    "See how quickly the loss falls: most of what rounding broke is repaired in the first few dozen steps.",
    "Only methods that train have a curve. The loss is the divergence from the 16-bit model on the calibration text; the table above shows it on "
    "text that was not trained on. A large gap between the two is overfitting: give it more sequences.",
    ("training_loss",), draw, summary, wide=True, order=8,
)  # fmt: skip
