"""The mixed-precision allocator: the map of chosen widths, and predicted against measured divergence over stored bits."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, Chart, Plot, finite, layout, plot, short_layer
from explorer.figures.sensitivity import matrix
from explorer.paired import by_window
from explorer.records import significant

STRENGTH = {2: 0.12, 3: 0.32, 4: 0.5, 5: 0.6, 6: 0.68, 7: 0.75, 8: 0.82, 16: 1.0}  # of one hue, by bits: more bits are the stronger colour
KINDS = {"uniform": ("circle", COLOURS[0], "one width for all"), "mixed": ("diamond", COLOURS[2], "allocated")}
NOTHING = "Nothing to spend a budget by yet: press Measure sensitivity."


def draw_map(data: dict[str, Any]) -> Plot:
    """data["assignment"]: layer -> bits."""
    assignment = data.get("assignment", {})
    if not assignment:
        return plot([], layout("block", "", 320), NOTHING)
    widths = sorted(set(assignment.values()))
    blocks, kinds, bits = matrix(assignment)
    _, _, names = matrix({layer: f"{short_layer(layer)}: {bits} bits" for layer, bits in assignment.items()})
    step = 1 / len(widths)
    scale = [[edge, f"rgba(0,158,115,{STRENGTH[width]})"] for i, width in enumerate(widths) for edge in (i * step, (i + 1) * step)]
    at = [[None if b is None else widths.index(b) for b in row] for row in bits]
    bar = {"tickvals": list(range(len(widths))), "ticktext": [f"{w} bits" for w in widths], "thickness": 14, "outlinewidth": 0}
    trace = {
        "type": "heatmap", "x": blocks, "y": kinds, "z": at, "customdata": names, "hovertemplate": "%{customdata}<extra></extra>", "colorscale": scale,
        "zmin": -0.5, "zmax": len(widths) - 0.5, "colorbar": bar, "xgap": 2, "ygap": 2, "hoverongaps": False,
        "meta": {"picks": matrix({layer: f"layer:{layer}" for layer in assignment})[2]},
    }  # fmt: skip
    shape = layout("block", "", max(300, 90 + 34 * len(kinds)), xaxis={"type": "category"}, yaxis={"autorange": "reversed"}, margin={"l": 84})
    return plot([trace], shape)


def map_words(data: dict[str, Any]) -> str:
    assignment = list(data.get("assignment", {}).values())
    if not assignment:
        return "No assignment yet."
    parts = [f"{assignment.count(width)} at {width} bits" for width in sorted(set(assignment))]
    return (
        f"Of {len(assignment)} layers, {', '.join(parts)}; {data['bits']:.3f} stored bits a weight, predicted divergence {significant(data['predicted'])} nats."
    )


def draw(data: dict[str, Any]) -> Plot:
    """data["frontier"]: [bits, predicted nats] pairs; data["points"]: dicts of kind, name, bits, predicted and, once run, kld, low, high, windows (W nats)."""
    traces: list[dict] = []
    if data.get("frontier"):
        bits, losses = zip(*data["frontier"], strict=True)
        traces.append(
            {"type": "scatter", "mode": "lines", "x": bits, "y": losses, "name": "best assignment, predicted", "line": {"color": COLOURS[1], "dash": "dot"},
             "hovertemplate": "%{x:.3f} bits: %{y:.4g} nats predicted"}
        )  # fmt: skip
    for kind, (symbol, colour, words) in KINDS.items():
        points = [p for p in data.get("points", []) if p["kind"] == kind]
        predicted = [p for p in points if finite(p.get("predicted")) and p["predicted"] > 0]
        if predicted:
            marker = {"symbol": symbol + "-open", "color": colour, "size": 11, "line": {"width": 2}}
            traces.append(marks(predicted, "predicted", words) | {"marker": marker})
        measured = [p for p in points if finite(p.get("kld")) and p["kld"] > 0]
        if measured:
            up, down = ([abs(p[end] - p["kld"]) if finite(p[end]) else 0.0 for p in measured] for end in ("high", "low"))
            error = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
            traces.append(marks(measured, "kld", words) | {"marker": {"symbol": symbol, "color": colour, "size": 11}, "error_y": error})
    shape = layout("stored bits per weight", "KL divergence, nats (log)", 380, yaxis={"type": "log", "dtick": 1})
    return plot(traces, shape | {"showlegend": True}, NOTHING)


def marks(points: list[dict], value: str, words: str) -> dict[str, Any]:
    """A trace of points at their bits and a value, "predicted" or "kld"."""
    how = "measured" if value == "kld" else value
    return {
        "type": "scatter", "mode": "markers", "x": [p["bits"] for p in points], "y": [p[value] for p in points], "text": [p["name"] for p in points],
        "name": f"{words}, {how}", "hovertemplate": f"%{{text}}: %{{y:.4g}} nats {how}<extra></extra>",
    }  # fmt: skip


def summary(data: dict[str, Any]) -> str:
    points = data.get("points", [])
    mixed = next((p for p in points if p["kind"] == "mixed" and finite(p.get("kld"))), None)
    if not points:
        return "Nothing predicted yet."
    if mixed is None:
        return "Predicted from the sensitivities alone. Run it to see whether the prediction holds."
    kld = mixed["kld"]
    ratio = kld / mixed["predicted"] if mixed["predicted"] else float("inf")
    held = "held" if 0.8 <= ratio <= 1.25 else f"was {'too low' if ratio > 1 else 'too high'} by {100 * abs(ratio - 1):.0f}%"
    text = (
        f"Measured {significant(kld)} nats ({significant(mixed['low'], kld)} to {significant(mixed['high'], kld)}), "
        f"predicted {significant(mixed['predicted'], kld)}: the prediction {held}. "
        "The prediction adds up single layers on the calibration text; the measurement is all of them at once on the evaluation text."
    )
    return text + against(mixed, [p for p in points if p["kind"] == "uniform" and finite(p.get("kld"))])


def against(mixed: dict, uniforms: list[dict]) -> str:
    """Whether one width for all does as well at the same size, in a sentence."""
    if not uniforms:
        return ""
    near = min(uniforms, key=lambda p: abs(p["bits"] - mixed["bits"]))
    size = "the same size" if abs(near["bits"] - mixed["bits"]) < 0.02 else f"{near['bits']:.3f} bits (the allocation has {mixed['bits']:.3f})"
    words, found = f" {near['name']} at {size} has {significant(near['kld'])}", by_window(mixed.get("windows"), near.get("windows"))
    if found is None:
        return f"{words}: without the same windows of text for both nothing tells whether that is a difference."
    _, low, high = found
    if low <= 0 <= high:
        return f"{words}: paired by window no difference is shown."
    return f"{words}: {'spending the bits unevenly wins' if high < 0 else 'here one width for all is better'}, paired over {len(near['windows'])} windows."


MAP = Chart(
    "allocation_map", "Where the bits go", "See which rows and columns get more bits than the rest; drag the budget and watch which layers give way first.",
    "Each cell is one layer and its width. The assignment is exact: of all combinations whose codes, scales and zeros fit the budget, it has the least "
    "summed divergence (a knapsack solved layer by layer, keeping every combination that no other beats in both size and loss).",
    draw_map, map_words, {"assignment": {"layers.0.self_attn.v_proj": 4, "layers.1.mlp.down_proj": 2}, "bits": 3.0, "predicted": 0.02},
    kinds=lambda data: ("estimated",),
)  # fmt: skip
CHART = Chart(
    "allocation", "Did the prediction hold?",
    "See whether the filled diamond (measured) lies on the dotted line (predicted), and below the circles of one width for all.",
    "Divergences of single layers add up only while each error is small and they do not work together. At three bits and more that mostly holds; at two "
    "bits errors feed on each other and the sum is too low. The line is a prediction, the filled points are measurements.",
    draw, summary,
    {"frontier": [[2.25, 0.8], [3.25, 0.1]], "points": [
        {"kind": "uniform", "name": "RTN 3-bit g64", "bits": 3.25, "predicted": 0.15, "kld": 0.14, "low": 0.13, "high": 0.15},
        {"kind": "mixed", "name": "allocated", "bits": 3.25, "predicted": 0.11, "kld": 0.1, "low": 0.09, "high": 0.11}]},
    kinds=lambda data: ("estimated", *["measured"] * any(finite(p.get("kld")) for p in data.get("points", []))),
)  # fmt: skip
