"""The view of the trade-offs that sets measured times beside what reading alone would take at the rate of memory. No figure of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from explorer.figures import COLOURS, MARKERS, Plot, layout, plot
from explorer.figures.labels import brief, spaced

NOTHING = "No point says a limit and the rate of memory that it is for. Run a sweep."
LOOK = (
    "See how far above the dashed line, its own bandwidth limit, each point lies: what of its time is not reading at that rate. Points that run parallel to "
    "the line take time in proportion to their bytes; on a level row bytes make no difference. Hollow: timed on a busy machine."
)
Timed = tuple[dict[str, Any], float, float, str]  # a point, its limit and its time, ms a token, and the text at the pointer


def settled(point: dict[str, Any]) -> bool:
    """Whether other work disturbed neither a point's times nor the reading of memory."""
    return not (point.get("disturbed") or point.get("late"))


def draw(placed: Sequence[Timed], title: str) -> Plot:
    """title: of the x axis."""
    if not placed:
        return plot([], layout(title, "", 460), NOTHING)
    ends = [min(min(x, y) for _, x, y, _ in placed) / 1.3, max(max(x, y) for _, x, y, _ in placed) * 1.3]
    limit = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "name": "the limit itself", "hoverinfo": "skip"}
    traces = [limit | {"line": {"color": COLOURS[2], "dash": "dash"}}]
    marks = [(p["key"], brief(p), math.log10(x), math.log10(y)) for p, x, y, _ in placed]
    named = spaced(marks, [math.log10(end) for end in ends], [math.log10(end) for end in ends])
    for baseline in (True, False):
        chosen = [each for each in placed if (each[0]["method"] == "none") == baseline]
        symbol = MARKERS[0 if baseline else 1]
        look = {"color": COLOURS[0 if baseline else 1], "symbol": [symbol if settled(p) else f"{symbol}-open" for p, *_ in chosen], "size": 9}
        traces.append({"type": "scatter", "mode": "markers+text", "x": [x for _, x, _, _ in chosen], "y": [y for _, _, y, _ in chosen],
                       "customdata": [f"{text}<br>{y / x:.1f} times its limit of {x:.2f} ms, {p['limit']}" for p, x, y, text in chosen],
                       "text": [brief(p) if p["key"] in named else "" for p, *_ in chosen],
                       "textposition": [named.get(p["key"], "top right") for p, *_ in chosen], "textfont": {"size": 10},
                       "ids": [f"report:{p['key']}" for p, *_ in chosen], "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False,
                       "name": "16-bit baseline" if baseline else "quantized", "marker": look})  # fmt: skip
    shape = layout(title, "measured, ms a token (log)", 460, xaxis={"type": "log"}, yaxis={"type": "log"}, showlegend=True)
    return plot(traces, shape)


def summary(placed: Sequence[Timed], silent: int) -> str:
    """What reading takes of the times that nothing disturbed. silent: how many more points say no rate of memory."""
    calm = [(y / x, p) for p, x, y, _ in placed if settled(p)]
    late = [p["name"] for p, *_ in placed if not settled(p)]
    tail = f" Timed on a busy machine, so that nothing is concluded: {len(late)} ({', '.join(late[:4])})." if late else ""
    tail += f" {silent} more do not say the rate of memory that their limit is for and are left out." if silent else ""
    if not placed:
        return f"{NOTHING}{tail}"
    if not calm:
        return tail.strip()
    (least, near), (most, far) = (end(calm, key=lambda one: one[0]) for end in (min, max))
    rate = "; ".join(dict.fromkeys(p["limit"] for _, p in calm if p.get("limit")))
    ratios = f"{least:.1f} ({near['name']}) to {most:.1f} ({far['name']})" if len(calm) > 1 else f"{least:.1f} ({near['name']})"
    parts = f"{100 / most:.0f} to {100 / least:.0f}%" if len(calm) > 1 else f"{100 / least:.0f}%"
    return f"Measured times are {ratios} times the bandwidth limit ({rate}): reading at that rate takes {parts} of a token's time.{tail}"
