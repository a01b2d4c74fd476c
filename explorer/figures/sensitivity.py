"""Sensitivity of the layers: a map over blocks and projections, and the layers in order with their intervals."""

from __future__ import annotations

import math
import re
from typing import Any

from explorer.figures import COLOURS, Chart, Plot, finite, layout, picks, plot, short_layer
from explorer.paired import by_window

SCALE = [[0, "rgba(10,122,191,0.12)"], [0.5, "#0a7abf"], [1, "#d55e00"]]
NOTHING = "No layer measured yet: press Measure sensitivity."
SHOWN = 60  # layers in the ranking at most
WHAT = {
    "kld": ("KL divergence to the 16-bit model", "nats"), "delta": ("paired change in perplexity", "%"),
    "output_error": ("error of the layer's own output", "relative"),
}  # fmt: skip


def place(layer: str) -> tuple[int, str]:
    """(block, the rest of the name): ("layers.3.self_attn.q_proj") is (3, "q_proj")."""
    parts = layer.split(".")
    block = next((int(part) for part in parts if part.isdigit()), 0)
    return block, " ".join([*(part for part in parts if part.isdigit())][1:] + parts[-1:])


def matrix(values: dict[str, Any]) -> tuple[list[int], list[str], list[list[Any]]]:
    """(blocks, projections, values [projection][block], None where there is no such layer) from values by layer."""
    places = {layer: place(layer) for layer in values}
    blocks, kinds = sorted({b for b, _ in places.values()}), list(dict.fromkeys(kind for _, kind in places.values()))
    by_place = {places[layer]: value for layer, value in values.items()}
    return blocks, kinds, [[by_place.get((b, kind)) for b in blocks] for kind in kinds]


def chosen(data: dict[str, Any]) -> dict[str, dict]:
    """Layer -> row at the width of `data["width"]`, in the model's order."""
    return {row["layer"]: row for row in data.get("rows", []) if row["bits"] == data.get("width")}


def ranged(row: dict, what: str) -> str:
    """A value with its interval and unit."""
    value, low, high = row[what], row.get(f"{what}_low"), row.get(f"{what}_high")
    if not finite(value):
        return "not finite"
    return f"{value:.3g} {WHAT[what][1]}" + (f" ({low:.3g} to {high:.3g})" if finite(low) and finite(high) else "")


def draw(data: dict[str, Any]) -> Plot:
    rows, what = chosen(data), data.get("what", "kld")
    if not rows:
        return plot([], layout("block", "", 340), NOTHING)
    values = {layer: math.log10(row[what]) if finite(row[what]) and row[what] > 0 else None for layer, row in rows.items()}
    blocks, kinds, z = matrix(values)
    texts = matrix({layer: f"{short_layer(layer)}: {ranged(row, what)}" for layer, row in rows.items()})[2]
    known = [v for v in values.values() if v is not None] or [0.0]
    ticks = [i / 2 for i in range(math.ceil(2 * min(known)), math.floor(2 * max(known)) + 1)]
    bar = {"tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks], "thickness": 12, "outlinewidth": 0, "title": {"text": WHAT[what][1], "side": "top"}}
    trace = {
        "type": "heatmap", "x": blocks, "y": kinds, "z": z, "text": texts, "hovertemplate": "%{text}<extra></extra>", "colorscale": SCALE, "xgap": 2,
        "ygap": 2, "colorbar": bar, "hoverongaps": False, "meta": {"picks": matrix({layer: f"layer:{layer}" for layer in rows})[2]},
    }  # fmt: skip
    shape = layout("block", "", max(300, 90 + 34 * len(kinds)), xaxis={"type": "category"}, yaxis={"autorange": "reversed"}, margin={"l": 84})
    return plot([trace], shape)


def summary(data: dict[str, Any]) -> str:
    rows, what = chosen(data), data.get("what", "kld")
    known = sorted((row for row in rows.values() if finite(row[what])), key=lambda row: -row[what])
    if not known:
        return "No layer measured yet."
    total = sum(max(0.0, row["kld"]) for row in known)
    top = sorted(known, key=lambda row: -row["kld"])[:5]
    share = 100 * sum(row["kld"] for row in top) / total if total else 0.0
    kinds: dict[str, list[float]] = {}
    for row in known:
        kinds.setdefault(place(row["layer"])[1], []).append(row["kld"] / row["weights"])
    worst = max(kinds, key=lambda kind: sum(kinds[kind]) / len(kinds[kind]))
    names = ", ".join(short_layer(row["layer"]) for row in top)
    return (
        f"At {data['width']} bits the five most sensitive of {len(rows)} layers ({names}) carry {share:.0f}% of the summed divergence. "
        f"Largest by the chosen measure: {short_layer(known[0]['layer'])}, {ranged(known[0], what)}. For each weight it holds, {worst} costs the most."
    )


def draw_ranking(data: dict[str, Any]) -> Plot:
    what = data.get("what", "kld")
    rows = sorted((row for row in chosen(data).values() if finite(row[what])), key=lambda row: -row[what])[:SHOWN]
    positive = what != "delta"
    rows = [row for row in rows if row[what] > 0 or not positive]
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers", "x": [short_layer(row["layer"]) for row in rows], "y": [row[what] for row in rows],
        "ids": picks(row["layer"] for row in rows),
        "marker": {"size": 7, "color": COLOURS[1]}, "text": [ranged(row, what) for row in rows], "hovertemplate": "%{x}: %{text}<extra></extra>",
    }  # fmt: skip
    if what != "output_error":
        spans = [(row[f"{what}_low"], row[f"{what}_high"]) for row in rows]
        up = [high - row[what] if finite(high) else 0 for row, (_, high) in zip(rows, spans, strict=True)]
        down = [row[what] - low if finite(low) else 0 for row, (low, _) in zip(rows, spans, strict=True)]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.4, "width": 2}
    title = f"{WHAT[what][0]}, {WHAT[what][1]}"
    axis = {"type": "log", "title": {"text": f"{WHAT[what][1]} (log)"}} if positive else {"title": {"text": title}}
    shape = layout("layer, most sensitive first", "", 360, yaxis=axis, xaxis={"tickangle": -60, "tickfont": {"size": 9}})
    return plot([trace] if rows else [], shape, NOTHING)


def over(data: dict[str, Any], row: dict) -> str:
    """What the intervals of a row are over: windows of text, as the answer's protocol counts them, and their tokens."""
    windows = re.search(r"(\d+) windows? of ", str(data.get("text", "")))
    return f"{windows[1]} windows ({row['tokens']:,} tokens)" if windows else f"the windows of {row['tokens']:,} tokens"


def paired(row: dict, first: dict) -> tuple[float, float, float] | None:
    """What one layer costs less another, with a 95% interval, paired by window; None for rows without windows or with tokens left out."""
    return None if row["bad"] or first["bad"] else by_window(row.get("kld_windows"), first.get("kld_windows"))


def measurably_less(row: dict, first: dict) -> bool:
    """Whether a layer costs measurably less than another: paired by window, or where that cannot be, when their intervals lie apart."""
    found = paired(row, first)
    return finite(row["kld_high"]) and row["kld_high"] < first["kld_low"] if found is None else found[2] < 0


def ranking_words(data: dict[str, Any]) -> str:
    rows = sorted((row for row in chosen(data).values() if finite(row["kld"])), key=lambda row: -row["kld"])
    if len(rows) < 2:
        return "No layers to put in order yet."
    first = rows[0]
    apart = len(rows)  # from which layer on all cost measurably less than the first
    while apart > 1 and measurably_less(rows[apart - 1], first):
        apart -= 1
    how = "Paired by window, " if all(paired(row, first) for row in rows) else "By their intervals, "
    scored = over(data, first)
    if apart == len(rows):
        return f"{how}no layer is measurably less sensitive than {short_layer(first['layer'])}: over {scored} the order means nothing."
    others = [short_layer(row["layer"]) for row in rows[1:apart]]
    named = others[0] if len(others) == 1 else f"the {len(others)} layers after it"
    alike = f"{short_layer(first['layer'])} and {named} cannot be told apart" if others else f"{short_layer(first['layer'])} is the most sensitive"
    rest = f"from {short_layer(rows[apart]['layer'])} on, layers are measurably less sensitive"
    return f"Bars are 95% intervals of each layer alone over {scored}. {how}{alike}; {rest}."


def _row(layer: str, kld: float) -> dict[str, Any]:
    return {"layer": layer, "bits": 3, "stored_bits": 300, "weights": 100, "kld": kld, "kld_low": kld / 2, "kld_high": 2 * kld, "delta": 100 * kld,
            "delta_low": -kld, "delta_high": 200 * kld, "output_error": 0.1, "tokens": 2044, "bad": 0}  # fmt: skip


EXAMPLE = {"rows": [_row("layers.0.self_attn.v_proj", 0.02), _row("layers.1.mlp.down_proj", 0.001)], "width": 3, "what": "kld"}

MAP = Chart(
    "sensitivity", "Which layer costs the quality?", "See the orange cells: rounding these layers alone moves the model's output the most.",
    "One layer at a time is rounded while all others stay exact, and the divergence of the whole model's output is measured. The layer's own output "
    "error is a poor guide: an equal error can be harmless in one place and ruinous in another, which the map shows when you switch the measure.",
    draw, summary, EXAMPLE,
)  # fmt: skip
RANKING = Chart(
    "sensitivity_ranking", "The layers in order",
    "See from which layer on the words below say that layers matter less than the first: before it the order may be chance.",
    "Each layer is scored on the same windows of text. A bar is one layer alone, and most of it is how much windows differ, which all layers share; so "
    "layers are compared by their difference in each window, and bars that overlap may belong to layers that measurably differ. A ranking without intervals "
    "invites stories about noise; a budget spent by such a ranking may be spent at random.",
    draw_ranking, ranking_words, EXAMPLE,
)  # fmt: skip
