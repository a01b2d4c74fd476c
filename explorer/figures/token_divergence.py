"""Divergence token by token: a text of the baseline, read by every configuration."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from explorer.figures import Chart, Plot, layout, plot
from explorer.pieces import called
from explorer.records import significant

FLOOR, CEILING = 1e-4, 10.0  # nats
LEVELS = (1e-4, 1e-2, 1)
# From transparent grey to the orange of a bad number: it reads on white and on a dark card.
SCALE = [[0, "rgba(127,127,127,0.06)"], [0.4, "#56b4e9"], [0.7, "#d55e00"], [1, "#7a2300"]]


def shade(nats: float | None) -> float | None:
    """log10 of a divergence between FLOOR and CEILING."""
    return None if nats is None else math.log10(min(max(nats, FLOOR), CEILING))


def draw(data: dict[str, Any]) -> Plot:
    told = data.get("forced") or {}
    runs, text = told.get("runs", []), told.get("text", [])
    shape = layout("token of the baseline's text", "", max(300, 130 + 46 * len(runs)), margin={"l": 8})
    if not runs:
        return plot([], shape)
    hover = [[hovered(told, run, i) for i in range(len(text))] for run in runs]
    names = [run["label"] for run in runs]
    bar = {
        "title": {"text": "nats", "side": "top"}, "tickvals": [math.log10(v) for v in LEVELS], "ticktext": [f"{v:g}" for v in LEVELS], "thickness": 12,
        "tickangle": 0,
        "orientation": "h", "y": 1.02, "yanchor": "bottom", "len": 1, "x": 0, "xanchor": "left",
    }  # fmt: skip
    heat = {
        "type": "heatmap", "z": [[shade(v) for v in run["kl"]] for run in runs], "y": list(range(len(runs))), "x": list(range(1, len(text) + 1)),
        "text": hover, "hovertemplate": "%{text}<extra></extra>", "colorscale": SCALE, "zmin": math.log10(FLOOR), "zmax": math.log10(CEILING),
        "colorbar": bar, "xgap": 1 if len(text) < 150 else 0, "ygap": 3,
    }  # fmt: skip
    at = [(i + 1, row) for row, run in enumerate(runs) for i, flip in enumerate(run["flip"]) if flip]
    flips = {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in at], "y": [y for _, y in at], "hoverinfo": "skip", "showlegend": False,
        "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": "#7f7f7f"}},
    }  # fmt: skip
    shape["yaxis"] |= {"tickvals": list(range(len(runs))), "ticktext": names, "autorange": "reversed", "showgrid": False}
    shape["xaxis"] |= {"showgrid": False, "range": [0.5, len(text) + 0.5]}
    start = told.get("start", 0) + 0.5
    shape["shapes"] = [{"type": "line", "x0": start, "x1": start, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "#808080", "dash": "dot", "width": 1.5}}]
    return plot([heat, flips] if at else [heat], shape)


def hovered(told: dict[str, Any], run: dict[str, Any], i: int) -> str:
    """What is said of one token under one configuration."""
    p, q, kl = told["p"][i], run["p"][i], run["kl"][i]
    numbers = "not finite" if None in (p, q, kl) else f"probability {p:.3f} → {q:.3f}, KL {significant(kl)} nats"
    flip = f"<br>another top token; the baseline's led by {100 * told['lead'][i]:.0f} points" if run["flip"][i] and told["lead"][i] is not None else ""
    return f"{escape(called(told['text'][i]))}<br>{numbers}{flip}"


def summary(data: dict[str, Any]) -> str:
    told = data.get("forced") or {}
    parts = []
    for run in told.get("runs", []):
        known = [v for v in run["kl"] if v is not None]
        worst = max(range(len(run["kl"])), key=lambda i: run["kl"][i] or 0.0, default=None)
        if not known or worst is None:
            parts.append(f"{run['label']}: no token has a finite divergence")
            continue
        clear = sum(flip and (lead or 0) > 0.2 for flip, lead in zip(run["flip"], told["lead"], strict=True))
        parts.append(
            f"{run['label']}: mean {significant(sum(known) / len(known))} nats, worst {significant(run['kl'][worst] or 0)} at token {worst + 1}, "
            f"{sum(run['flip'])} of {len(run['flip'])} top tokens flipped, {clear} of them clear ones"
        )
    return "; ".join(parts) + "." if parts else "Nothing written yet."


CHART = Chart(
    "token_divergence", "Divergence, token by token",
    "See where it goes wrong: dark cells are tokens at which a configuration's prediction left the baseline's; a cross is another top token.",
    "All configurations read the same text here, your prompt and what the baseline wrote (after the dotted line), so no difference grows out of an earlier "
    "one: each cell is that position's own damage. Two texts that part early may be equally good; many dark cells are real damage. A flip where the baseline "
    "hesitated between two tokens (hover shows its lead) is harmless. A mean hides where the damage is: names, numbers and rare words usually suffer first.",
    draw, summary,
    {"forced": {"text": [" the", " <b>"], "start": 1, "p": [0.5, None], "lead": [0.3, 0.1],
                "runs": [{"label": "RTN <3>", "kl": [0.02, None], "p": [0.4, None], "flip": [True, False]}]}},
)  # fmt: skip
