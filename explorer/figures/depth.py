"""Depth: kurtosis of every layer's inputs, and which channels stand out in how many layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, Figure, Plot, finite, layout, picks, plot, short_layer
from explorer.records import Report

CHANNELS = 24


def measured(reports: Sequence[Report], metric: str) -> Report | None:
    """The first report with a metric by layer; these are the 16-bit model's, so all reports share them."""
    return next((report for report in reports if report.by_layer(metric)), None)


def draw_kurtosis(reports: Sequence[Report], layer: str) -> Plot:
    shape = layout("block", "kurtosis of the inputs (log)", 340, yaxis={"type": "log"}, xaxis={"dtick": 1}, showlegend=True)
    report = measured(reports, "activation_kurtosis")
    kinds: dict[str, list[tuple[int, float, str]]] = {}
    for name, value in (report.by_layer("activation_kurtosis") if report else {}).items():
        block = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if finite(value):
            kinds.setdefault(name.rsplit(".", 1)[-1], []).append((block, value, name))
    shown: dict[tuple, str] = {}
    for kind, points in kinds.items():  # layers that read the same inputs share one line
        key = tuple(value for _, value, _ in points)
        shown[key] = f"{shown[key]}, {kind}" if key in shown else kind
    data = []
    for i, (values, kind) in enumerate(shown.items()):
        points = kinds[kind.split(", ")[0]]
        if max(p[0] for p in points) > 16:
            shape["xaxis"].pop("dtick", None)
        data.append(
            {"type": "scatter", "mode": "lines+markers", "x": [p[0] for p in points], "y": list(values), "name": kind, "ids": picks(p[2] for p in points),
             "line": {"color": COLOURS[(i + 1) % 5], "dash": DASHES[i % 5], "width": 1.6},
             "marker": {"symbol": MARKERS[i % 5], "size": [11 if p[2] == layer else 6 for p in points]}, "hovertemplate": f"{kind}, block %{{x}}: %{{y:.2f}}"}
        )  # fmt: skip
    if data:
        shape["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 3, "y1": 3, "line": {"color": COLOURS[0], "dash": "dash", "width": 1}}]
    return plot(data, shape)


def tell_kurtosis(reports: Sequence[Report], layer: str) -> str:
    report = measured(reports, "activation_kurtosis")
    values = {name: v for name, v in (report.by_layer("activation_kurtosis") if report else {}).items() if finite(v)}
    if not values:
        return "No kurtosis measured."
    worst = max(values, key=lambda name: values[name])
    calm = sum(v < 6 for v in values.values())
    return f"Highest: {values[worst]:.1f} at {short_layer(worst)}; {calm} of {len(values)} layers stay below 6 (3, the dashed line, is normal)."


def stripes(reports: Sequence[Report]) -> dict[str, Any]:
    """{layers, channels, cells (largest |input| over the median channel's, [channels][layers])} of the layers that share the most common width."""
    report = measured(reports, "activation_absmax")
    found = {name: v for name, v in (report.by_layer("activation_absmax") if report else {}).items() if all(map(finite, v)) and median(v) > 0}
    unique: dict[tuple, str] = {}
    for name, values in found.items():
        unique.setdefault(tuple(values), name)
    widths = [len(values) for values in unique]
    if not widths:
        return {}
    width = max(set(widths), key=widths.count)
    kept = {name: values for values, name in unique.items() if len(values) == width}
    ratios = {name: [v / median(values) for v in values] for name, values in kept.items()}
    rank = sorted(range(width), key=lambda c: -sum(r[c] for r in ratios.values()))[:CHANNELS]
    return {"layers": list(ratios), "channels": rank, "cells": [[round(r[c], 2) for r in ratios.values()] for c in rank]}


def draw_stripes(reports: Sequence[Report], layer: str) -> Plot:
    found = stripes(reports)
    shape = layout(
        "layer, in the order of the model",
        "channel",
        460,
        xaxis={"tickangle": -60, "tickfont": {"size": 10}},
        yaxis={"autorange": "reversed", "tickfont": {"size": 10}},
    )
    if not found:
        return plot([], shape)
    heat = {
        "type": "heatmap", "z": found["cells"], "x": [short_layer(name) for name in found["layers"]], "y": [f"{c}" for c in found["channels"]],
        "colorscale": "Viridis", "colorbar": {"title": {"text": "times the median channel", "side": "right"}, "thickness": 10},
        "hovertemplate": "%{x}, channel %{y}: %{z:.1f} times the median<extra></extra>", "meta": {"picks": [picks(found["layers"])] * len(found["cells"])},
    }  # fmt: skip
    shape["yaxis"]["type"] = "category"
    return plot([heat], shape)


def tell_stripes(reports: Sequence[Report], layer: str) -> str:
    found = stripes(reports)
    if not found:
        return "No outlier channels measured."
    first, cells = found["channels"][0], found["cells"][0]
    above = [sum(v > 6 for v in row) for row in found["cells"]]
    name = short_layer(found["layers"][max(range(len(cells)), key=lambda i: cells[i])])
    most = f"Channel {first} stands out most, up to {max(cells):.1f} times the median channel (at {name})"
    persistent = sum(count >= len(cells) / 2 for count in above)
    tail = (
        f"{persistent} channels exceed 6 times the median in half of the layers"
        if persistent
        else "no channel exceeds 6 times the median in half of the layers, as the outliers of large models do"
    )
    return f"{most}; {tail}. Layers that read the same inputs are shown once, {len(cells)} in all."


KURTOSIS = Figure(
    "kurtosis", "Kurtosis by layer",
    "See which inputs have heavy tails (far above the dashed line at 3), and whether depth makes it worse.",
    "Attention and MLP inputs come from a normalisation and are fairly calm; the inputs of down_proj are a product of two activations and usually the "
    "heaviest. That is why "
    "mixed schemes keep down_proj wide, and why rotation is applied there online. Layers that read the same inputs share a line.",
    ("activation_kurtosis",), draw_kurtosis, tell_kurtosis, by_layer=True, order=8, tab="activations",
)  # fmt: skip
STRIPES = Figure(
    "depth", "Outlier channels through depth",
    "See whether a bright row runs through all layers: the same channel standing out from the first block to the last.",
    "The residual stream carries channels from block to block, so an outlier that one block writes is read by all later ones. In models of some billion "
    "parameters a handful "
    "of channels persist like that (LLM.int8(), section 4), and per-channel remedies can be fixed once. Scattered bright cells are not outliers in that sense.",
    ("activation_absmax",), draw_stripes, tell_stripes, order=9, tab="activations",
)  # fmt: skip
