"""What int8 makes of one layer's product: by how the inputs are scaled, before and after a transform."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, WAITING, Chart, Plot, finite, layout, plot
from explorer.figures.transforms import EXAMPLE, NAMES


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("output error, % (log)", "", 340, xaxis={"type": "log"}, yaxis={"autorange": "reversed"}, showlegend=True, margin={"l": 110})
    if not data:
        return plot([], shape, WAITING)
    errors = {what: [None if not finite(v) else 100 * v for v in pair] for what, pair in data["errors"].items()}
    moved: list[float | None] = [v for before, after in errors.values() for v in ((before, after, None) if after else (None, None, None))]
    where = [what for what in errors for _ in range(3)]
    traces = [{"type": "scatter", "mode": "lines", "x": moved, "y": where, "line": {"color": COLOURS[0], "width": 2}, "showlegend": False, "hoverinfo": "skip"}]
    sides = [(0, "as they are", COLOURS[2], "circle")]
    sides += [(1, NAMES[data["transform"]], COLOURS[1], "diamond")] if data["transform"] != "none" else []
    for side, name, colour, symbol in sides:
        traces.append(
            {"type": "scatter", "mode": "markers", "x": [pair[side] for pair in errors.values()], "y": list(errors), "name": name,
             "marker": {"color": colour, "symbol": symbol, "size": 13}, "hovertemplate": "%{y}: %{x:.3g}%"}
        )  # fmt: skip
    return plot(traces, shape)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "No product is measured yet."
    errors = data["errors"]
    exact, tensor, token = (errors[name][0] for name in ("16-bit inputs", "W8A8 per tensor", "W8A8 per token"))
    inputs = f"{100 * tensor:.3g}% per tensor and {100 * token:.3g}% per token"
    cost = f"Int8 weights alone cost {100 * exact:.3g}% of the output; with inputs rounded too it is {inputs}"
    repaired = f"SmoothQuant at alpha {data['alpha']:g} takes int8 per token from {100 * token:.3g}% to {100 * data['smooth_error']:.3g}%"
    weak = ""
    if exact > 0.02:
        weak = (
            " The weights suffer as well: the columns that meet the planted channels became small, and a scale a row rounds them away; no way of rounding the "
            "inputs repairs that."
        )
    return f"{cost}. {repaired}.{weak} Measured on {data['shape'][0]} tokens of {data['layer']}, weights int8 with a scale a row."


CHART = Chart(
    "int8_error", "What int8 makes of the product",
    "See how each way of scaling the inputs stands against 16-bit inputs (further left is better), and where the transform moves it.",
    "Per tensor, one scale serves all tokens and channels; per token, one a row. Neither helps when the same few channels are large in every token. "
    "LLM.int8() multiplies the channels above 6.0 apart, in 16 bits; SmoothQuant moves their size into the weights. The calibration (which channels, "
    "which scales) is read from other tokens than the error.",
    draw, summary, EXAMPLE,
)  # fmt: skip
