"""Inputs of one layer before and after a transform that keeps the product: channel by channel, token by token, and as a histogram."""

from __future__ import annotations

import math
from typing import Any

from explorer.figures import COLOURS, GRID, WAITING, Chart, Plot, layout, plot

NAMES = {"none": "unchanged", "smooth": "after SmoothQuant", "rotate": "after rotation"}


def _sides(data: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, str]]:
    """(name, what is told, colour, marker) of what is compared: one side when nothing was transformed."""
    first = ("as they are", data["before"], COLOURS[2], "circle")
    return [first] if data["transform"] == "none" else [first, (NAMES[data["transform"]], data["after"], COLOURS[1], "diamond")]


def _planted(data: dict[str, Any]) -> str:
    return f" with {data['channels']} channels {data['strength']:g} times larger" if data["strength"] > 1 else ""


def draw_channels(data: dict[str, Any]) -> Plot:
    shape = layout("", "largest |input| (log)", 440, yaxis={"type": "log", "domain": [0.56, 1]}, showlegend=True)
    if not data:
        return plot([], shape, WAITING)
    traces = []
    for what, axis in (("inputs", ""), ("weights", "2")):
        for name, told, colour, symbol in _sides(data):
            traces.append(
                {"type": "scatter", "mode": "markers", "x0": 1, "dx": 1, "y": told[what], "name": name, "customdata": data["order"], "legendgroup": name,
                 "showlegend": what == "inputs", "yaxis": f"y{axis}", "marker": {"color": colour, "symbol": symbol, "size": 4},
                 "hovertemplate": "channel %{customdata}: %{y:.3g}"}
            )  # fmt: skip
    shape["yaxis2"] = shape["yaxis"] | {"title": {"text": "largest |weight| (log)"}, "domain": [0, 0.44]}
    shape["xaxis"] |= {"title": {"text": "channel, by its largest input as they are"}, "anchor": "y2"}
    return plot(traces, shape, WAITING)


def tell_channels(data: dict[str, Any]) -> str:
    if not data:
        return "No inputs are shown yet."
    parts = [
        f"{name[0].upper()}{name[1:]}: the largest input channel is {told['ratio'][0]:.1f} times the median one, "
        f"the largest weight column {told['ratio'][1]:.1f} times"
        for name, told, _, _ in _sides(data)
    ]
    drawn, every = len(data["order"]), data["shape"][1]
    of = f"all {every:,} channels" if drawn == every else f"the {drawn:,} largest of {every:,} channels"
    return f"Inputs of {data['layer']}{_planted(data)}, {data['shape'][0]} tokens of calibration text; {of}. {'; '.join(parts)}."


def draw_tokens(data: dict[str, Any]) -> Plot:
    if not data:
        return plot([], layout("channel", "token", 420), WAITING)
    sides = _sides(data)
    rows, columns = sides[0][1]["block"]
    logs = [[[math.log10(max(v, 1e-6)) for v in row] for row in told["heat"]] for _, told, _, _ in sides]
    top = max(v for side in logs for row in side for v in row)
    gap = 0.06 if len(sides) > 1 else 0.0
    shape = layout("channel", "token", 420 if len(sides) == 1 else 620, margin={"t": 28})
    shape["annotations"] = []
    traces = []
    for i, (name, _, _, _) in enumerate(sides):
        height = (1 - gap) / len(sides)
        domain = [max(0.0, 1 - (i + 1) * height - i * gap), 1 - i * (height + gap)]
        axis = "" if i == 0 else str(i + 1)
        shape[f"yaxis{axis}"] = shape["yaxis"] | {"domain": domain, "autorange": "reversed", "title": {"text": "token"}}
        shape["annotations"].append(
            {"text": name, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "y": domain[1], "xanchor": "left", "yanchor": "bottom"}
        )
        traces.append(
            {"type": "heatmap", "z": [[round(v, 2) for v in row] for row in logs[i]], "x0": (columns - 1) / 2, "dx": columns, "y0": (rows - 1) / 2, "dy": rows,
             "yaxis": f"y{axis}", "colorscale": "Viridis", "zmin": top - 3, "zmax": top, "showscale": i == 0,
             "colorbar": {"title": {"text": "log10 largest |input|", "side": "right"}, "thickness": 10},
             "hovertemplate": "token %{y:.0f}, channel %{x:.0f}: 10^%{z:.2f}<extra></extra>"}
        )  # fmt: skip
    shape["xaxis"]["anchor"] = f"y{len(sides)}" if len(sides) > 1 else "y"
    return plot(traces, shape, WAITING)


def tell_tokens(data: dict[str, Any]) -> str:
    if not data:
        return "No inputs are shown yet."
    rows, columns = data["before"]["block"]
    stripes = [sum(column) / len(column) for column in zip(*data["before"]["heat"], strict=True)]
    lines = [sum(row) / len(row) for row in data["before"]["heat"]]
    by_channel, by_token = (max(v) / max(sorted(v)[len(v) // 2], 1e-12) for v in (stripes, lines))
    kind = "channels" if by_channel > by_token else "tokens"
    return (
        f"One cell is the largest of {rows} tokens x {columns} channels. The strongest channel block is {by_channel:.1f} times the median one, the "
        f"strongest token "
        f"{by_token:.1f} times: large values follow {kind} here. The largest input is at token {data['strongest'][0]}, {data['strongest'][1]!r}."
    )


def draw_histogram(data: dict[str, Any]) -> Plot:
    shape = layout("int8 code, one scale for the tensor", "values per bin (log)", 320, yaxis={"type": "log"}, showlegend=True)
    traces = []
    for i, (name, told, colour, _) in enumerate(_sides(data) if data else []):
        middles = [(a + b) / 2 for a, b in zip(data["hist_edges"], data["hist_edges"][1:], strict=False)]
        line = {"color": colour, "dash": ("solid", "dash")[i], "width": 1.8, "shape": "hvh"}
        counts = [c or None for c in told["counts"]]
        traces.append({"type": "scatter", "mode": "lines+markers", "marker": {"size": 3}, "x": middles, "y": counts, "name": name, "line": line})
    shape["yaxis"]["gridcolor"] = GRID
    return plot(traces, shape, WAITING)


def tell_histogram(data: dict[str, Any]) -> str:
    if not data:
        return "No inputs are shown yet."
    parts = [
        f"{name}: {100 * told['zeros']:.0f}% become code 0, kurtosis {told['kurtosis']:.1f}, largest {told['largest']:.3g}" for name, told, _, _ in _sides(data)
    ]
    return f"{'; '.join(parts)} (a kurtosis of 3 is a normal distribution)."


_TOLD = {
    "inputs": [4.0, 1.0],
    "weights": [0.2, 0.3],
    "heat": [[4.0, 0.0], [3.5, 1.0]],
    "block": [2, 4],
    "counts": [1, 5, 0],
    "zeros": 0.1,
    "kurtosis": 4.1,
    "ratio": [4.0, 1.5],
    "largest": 4.0,
}
EXAMPLE = {
    "layer": "layers.0.mlp.up_proj", "transform": "smooth", "alpha": 0.5, "strength": 16.0, "channels": 4, "shape": [128, 8], "order": [3, 0],
    "before": _TOLD, "after": _TOLD | {"ratio": [1.2, 2.0], "kurtosis": 3.2}, "hist_edges": [-4.0, -1.0, 1.0, 4.0],
    "errors": {
        "16-bit inputs": [0.01, 0.01], "W8A8 per tensor": [0.2, 0.02], "W8A8 per token": [0.1, 0.01], "LLM.int8()": [0.03, None],
    },
    "smooth_error": 0.012, "strongest": [1, "b"],
}  # fmt: skip

CHANNELS = Chart(
    "channels", "Where the difficulty is: channel by channel",
    "See the largest inputs (above) and the weights they meet (below): SmoothQuant flattens the first and lifts the second by the same factor.",
    "Input outliers sit in the same channels for every token, so a channel can be divided by a constant and the weight's column multiplied by it without "
    "changing the product. Weights have room to spare. A rotation mixes all channels instead: nothing stands out any more, and nothing is left to scale.",
    draw_channels, tell_channels, EXAMPLE,
)  # fmt: skip
TOKENS = Chart(
    "tokens", "Tokens and channels",
    "See whether large values form vertical stripes (the same channels for all tokens) or horizontal ones (single tokens).",
    "Stripes along the tokens are what makes a scale per token fail: every token carries the same few large channels. A single bright row is a token "
    "that attention "
    "uses as a sink; a scale per token absorbs it, a scale per tensor does not.",
    draw_tokens, tell_tokens, EXAMPLE,
)  # fmt: skip
HISTOGRAM = Chart(
    "input_histogram", "Inputs as int8 codes",
    "See which int8 codes are in use: with outliers nearly all values crowd into a few codes around 0, after the transform they spread out.",
    "An int8 scale reaches to the largest value, so a value in the middle of the distribution gets the fewer codes the longer the tails are. Kurtosis "
    "puts a number on it: 3 for a normal distribution, about 2 when a few planted channels hold all of the energy, hundreds where a few values stand alone.",
    draw_histogram, tell_histogram, EXAMPLE,
)  # fmt: skip
