"""What int8 makes of one layer's product: by how the inputs are scaled, before and after a transform."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, PATTERNS, Chart, Plot, layout, plot
from explorer.figures.transforms import EXAMPLE, NAMES


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("", "relative output error, % (log)", 340, yaxis={"type": "log"}, xaxis={"automargin": True, "tickangle": -20}, showlegend=True, bargap=0.25)
    if not data:
        return plot([], shape)
    names = list(data["errors"])
    sides = [(0, "as they are", COLOURS[2])] + ([(1, NAMES[data["transform"]], COLOURS[1])] if data["transform"] != "none" else [])
    traces = []
    for side, name, colour in sides:
        values = [data["errors"][what][side] for what in names]
        traces.append(
            {"type": "bar", "x": names, "y": [None if v is None else 100 * v for v in values], "name": name, "hovertemplate": "%{x}: %{y:.3g}%",
             "marker": {"color": colour, "pattern": {"shape": PATTERNS[side], "fgcolor": "white"}}}
        )  # fmt: skip
    return plot(traces, shape)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "No product is measured yet."
    errors = data["errors"]
    exact, rounded = errors["16-bit inputs"][0], errors["W8A8 per tensor"][0]
    cost = f"Rounding the inputs per tensor costs {100 * rounded:.2g}% of the output; weights alone cost {100 * exact:.2g}%"
    repaired = f"SmoothQuant at alpha {data['alpha']:g} brings int8 per token to {100 * data['smooth_error']:.2g}%"
    weak = ""
    if exact > 0.02:
        weak = " The weights suffer as well: the columns that meet the planted channels became small, and a scale a row rounds them away; no rounding of inputs repairs that."
    return f"{cost}. {repaired}.{weak} Measured on {data['shape'][0]} tokens of {data['layer']}, weights int8 with a scale a row."


CHART = Chart(
    "int8_error", "What int8 makes of the product",
    "See how each way of scaling the inputs stands against 16-bit inputs, and what the transform changes.",
    "Per tensor, one scale serves all tokens and channels; per token, one a row. Neither helps when the same few channels are large in every token. "
    "LLM.int8() multiplies the channels above 6.0 apart, in 16 bits; SmoothQuant moves their size into the weights. The calibration (which channels, "
    "which scales) is read from other tokens than the error.",
    draw, summary, EXAMPLE,
)  # fmt: skip
