"""Outlier channels: the largest input of each channel of one layer, sorted, with the outliers marked."""

from __future__ import annotations

from collections.abc import Sequence

from explorer.figures import COLOURS, Figure, Plot, layout, plot, with_metrics
from explorer.records import Report


def draw(reports: Sequence[Report], layer: str) -> Plot:
    found = with_metrics(reports, "activation_absmax", "outlier_channels", layer=layer)[:1]
    data: list[dict] = []
    shapes: list[dict] = []
    for _, report in found:
        values = report.value("activation_absmax", layer)
        ratio = set(report.value("outlier_channels", layer)["ratio"])
        order = sorted(range(len(values)), key=lambda c: -values[c])
        groups = (("channels", False, COLOURS[1], "circle", 4), ("over 6 times the median", True, COLOURS[2], "diamond", 8))
        for name, wanted, colour, symbol, size in groups:
            picked = [(rank, c) for rank, c in enumerate(order) if (c in ratio) == wanted]
            data.append(
                {"type": "scatter", "mode": "markers", "x": [r for r, _ in picked], "y": [values[c] for _, c in picked], "name": name,
                 "text": [f"channel {c}" for _, c in picked], "marker": {"color": colour, "symbol": symbol, "size": size}}
            )  # fmt: skip
        shapes = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 6, "y1": 6, "line": {"color": COLOURS[4], "dash": "dash", "width": 1}}]
    shape = layout("channel, sorted by its largest input", "largest |input| (log)", yaxis={"type": "log"})
    shape["shapes"] = shapes
    return plot(data, shape)


def summary(reports: Sequence[Report], layer: str) -> str:
    for _, report in with_metrics(reports, "outlier_channels", "activation_absmax", layer=layer)[:1]:
        found, n = report.value("outlier_channels", layer), len(report.value("activation_absmax", layer))
        layers = sum(bool(v["ratio"]) for v in report.by_layer("outlier_channels").values())
        return (
            f"{layer}: {len(found['ratio'])} of {n} input channels exceed 6 times the median channel, {len(found['llm_int8'])} reach the LLM.int8 "
            f"threshold of 6.0 (dashed line). {layers} of {len(report.by_layer('outlier_channels'))} layers have an outlier channel."
        )
    return "No outlier channels measured."


FIGURE = Figure(
    "outliers", "Outlier channels",
    "See whether a handful of channels (diamonds) stand far above a flat majority, and whether any crosses the dashed line at 6.0.",
    "Outliers sit in the same input channels for every token. That makes them treatable: keep those channels in 16 bits (LLM.int8), move their "
    "size into the weights (SmoothQuant), protect the weights they meet (AWQ), or spread them by rotation. Large models have them; small ones "
    "often do not.",
    ("activation_absmax", "outlier_channels"), draw, summary, by_layer=True, order=7, tab="activations",
)  # fmt: skip
