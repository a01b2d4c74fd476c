"""The mixed-precision allocator: the map of chosen widths, and predicted against measured divergence over stored bits."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from explorer.figures import COLOURS, Chart, Plot, finite, layout, plot, short_layer
from explorer.figures.sensitivity import matrix
from explorer.paired import by_window
from explorer.records import significant

STRENGTH = {2: 0.12, 3: 0.32, 4: 0.5, 5: 0.6, 6: 0.68, 7: 0.75, 8: 0.82, 16: 1.0}  # of one hue, by bits: more bits are the stronger colour
KINDS = {"uniform": ("circle", COLOURS[0], "one width for all"), "mixed": ("diamond", COLOURS[2], "allocated")}
NOTICED = 1.03  # times the stored bits: less is no difference that a reader would act on
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
    """data["frontier"]: [bits, predicted nats] pairs; data["points"]: dicts of kind, name, bits, predicted and, once run, kld, low, high,
    windows (W nats), resident (bits a weight in memory).
    """
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
    ends = [mixed.get(end) for end in ("low", "high")]
    interval = f" ({' to '.join(significant(end, kld) for end in ends)})" if all(map(finite, ends)) else ""
    text = (
        f"Measured {significant(kld)} nats{interval}, "
        f"predicted {significant(mixed['predicted'], kld)}: the prediction {held}. "
        "The prediction adds up single layers on the calibration text; the measurement is all of them at once on the evaluation text."
    )
    uniforms = [p for p in points if p["kind"] == "uniform" and finite(p.get("kld"))]
    return text + against(mixed, uniforms) + in_memory(mixed, uniforms)


def compared(ours: dict, theirs: dict) -> tuple[float, float, float] | None:
    """(difference of two points' divergences, low, high) in nats: paired by window where both scored the same, else from the far ends of both intervals;
    None where neither is known.
    """
    found = by_window(ours.get("windows"), theirs.get("windows"))
    if found is not None or not all(finite(point.get(end)) for point in (ours, theirs) for end in ("low", "high")):
        return found
    return ours["kld"] - theirs["kld"], ours["low"] - theirs["high"], ours["high"] - theirs["low"]


def against(mixed: dict, uniforms: list[dict]) -> str:
    """Whether spending the bits unevenly was better than one width for all, in a sentence. One width alone decides where it is no smaller and worse, or no
    larger and better; otherwise the line between the next smaller and the next larger width does.
    """
    if not uniforms:
        return ""
    near = sorted(uniforms, key=lambda p: abs(p["bits"] - mixed["bits"]))
    for point in near:
        found = compared(mixed, point)
        at, larger = said(point), point["bits"] - mixed["bits"]
        if found and larger >= 0 and found[2] < 0:
            return f" {at} is {'as large' if larger == 0 else 'larger'} and worse: spending the bits unevenly wins, {how(mixed, point)}."
        if found and larger <= 0 and found[1] > 0:
            return f" {at} is {'as large' if larger == 0 else 'smaller'} and better: here one width for all wins, {how(mixed, point)}."
        if found and larger == 0:
            return f" {at} is as large: no difference is shown, {how(mixed, point)}."
    below = max((p for p in near if p["bits"] < mixed["bits"]), key=lambda p: p["bits"], default=None)
    above = min((p for p in near if p["bits"] > mixed["bits"]), key=lambda p: p["bits"], default=None)
    if below is None or above is None:
        return f" {said(near[0])} is of another size, and no width on the allocation's other side was measured: nothing is concluded."
    return between(mixed, below, above)


def said(point: dict) -> str:
    return f"{point['name']} ({point['bits']:.3f} bits a weight, {significant(point['kld'])} nats)"


def how(*points: dict) -> str:
    """By what points were compared, as words that end a sentence."""
    windows = [p.get("windows") for p in points]
    paired = all(windows) and len(set(map(len, windows))) == 1
    return f"paired over {len(windows[0])} windows" if paired else "by intervals that are not paired"


def between(mixed: dict, below: dict, above: dict) -> str:
    """The allocation beside what one width for all would have at its size, by a straight line in the logarithm of the divergence, in a sentence."""
    share = (mixed["bits"] - below["bits"]) / (above["bits"] - below["bits"])
    middle = interpolated(below, above, share)
    found = compared(mixed, middle)
    line = (
        f" {said(below)} is smaller, {said(above)} larger. On a straight line between them in log divergence one width for all would have "
        f"{significant(middle['kld'])} nats at {mixed['bits']:.3f} bits; that is an interpolation, no such width was measured."
    )
    if found is None:
        return f"{line} Without intervals nothing tells whether the allocation differs from that."
    value, low, high = found
    if low <= 0 <= high:
        return f"{line} The allocation cannot be told from that, {how(mixed, below, above)}."
    wins = "spending the bits unevenly wins" if high < 0 else "here one width for all is better"
    ends = sorted((abs(low), abs(high)))
    apart = f"{significant(abs(value))} ({significant(ends[0])} to {significant(ends[1])}) nats {'below' if value < 0 else 'above'} it"
    return f"{line} The allocation is {apart}: {wins}, {how(mixed, below, above)}."


def interpolated(below: dict, above: dict, share: float) -> dict[str, Any]:
    """A point at this share of the way from one to the other: kld, low and high on lines of their logarithms, and windows whose mean is kld and whose
    differences from others have the spread of the interpolation, to first order.
    """
    windows = [p.get("windows") for p in (below, above)]
    if all(windows) and len(windows[0]) == len(windows[1]):
        means = [fmean(values) for values in windows]
        if min(means) > 0:
            kld = geometric(*means, share)
            own = [kld * ((1 - share) * a / means[0] + share * b / means[1]) for a, b in zip(*windows, strict=True)]
            return {"kld": kld, "windows": own}
    ends = {end: (below.get(end), above.get(end)) for end in ("kld", "low", "high")}
    return {end: geometric(*pair, share) for end, pair in ends.items() if all(finite(v) and v > 0 for v in pair)}


def geometric(first: float, second: float, share: float) -> float:
    return math.exp((1 - share) * math.log(first) + share * math.log(second))


def in_memory(mixed: dict, uniforms: list[dict]) -> str:
    """What the allocation takes while it runs, where that is more than what it stores, beside the best width for all that takes no more, in sentences."""
    held = mixed.get("resident")
    if not finite(held) or held <= NOTICED * mixed["bits"]:
        return ""
    text = (
        f" In memory it takes {held:.3f} bits a weight here, {100 * (held / mixed['bits'] - 1):.0f}% more than it stores, because some widths lie in wider "
        "codes there."
    )
    fitting = [p for p in uniforms if finite(p.get("resident")) and p["resident"] <= held]
    if not fitting:
        return f"{text} No width for all that was measured takes as little, so nothing is concluded for memory."
    best = min(fitting, key=lambda p: p["kld"])
    found = compared(mixed, best)
    text += f" {best['name']} takes {best['resident']:.3f} and has {significant(best['kld'])} nats: "
    if found is None or found[1] <= 0 <= found[2]:
        return f"{text}in that memory no difference is shown."
    wins = "in that memory the allocation is better" if found[2] < 0 else "in that memory one width for all is better"
    return f"{text}{wins}, {how(mixed, best)}."


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
