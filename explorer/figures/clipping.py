"""Clipping: what it buys, or costs, to let the grid span less than min to max."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, WAITING, Chart, Plot, finite, layout, plot


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("share of min to max that the grid spans", "signal to noise, dB", 340, showlegend=True)
    traces = []
    for i, (bits, curve) in enumerate(data.get("sqnr", {}).items()):
        best = max((p for p in range(len(curve)) if finite(curve[p])), key=lambda p: curve[p], default=0)
        line = {"color": COLOURS[1 + i % 4], "dash": DASHES[i % 5], "width": 1.8}
        size = [12 if p == best else 4 for p in range(len(curve))]
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": data["shares"], "y": curve, "name": f"{bits} bits", "line": line,
             "marker": {"symbol": MARKERS[i % 5], "size": size, "color": COLOURS[1 + i % 4]},
             "hovertemplate": f"{bits} bits, %{{x:.2f}} of the range: %{{y:.2f}} dB<extra></extra>"}
        )  # fmt: skip
    return plot(traces, shape, WAITING)


def summary(data: dict[str, Any]) -> str:
    parts = []
    for bits, curve in data.get("sqnr", {}).items():
        points = [(v, s) for v, s in zip(curve, data["shares"], strict=True) if finite(v)]
        if points:
            value, share = max(points)
            gain = value - points[-1][0]
            parts.append(f"{bits} bits do best at {share:.2f} of the range" + (f" ({gain:+.1f} dB)" if gain > 0.05 else ", that is without clipping"))
    if not parts:
        return "No curve is drawn yet."
    where = f"groups of {data['group_size']}" if data["granularity"] == "group" else f"one scale a {'row' if data['granularity'] == 'channel' else 'tensor'}"
    return f"{'; '.join(parts)}. RTN, {where}, measured on {data['rows']} of {data['of']:,} rows."


CHART = Chart(
    "clipping", "Clip or keep the maximum?",
    "See the arch: its top (large marker) moves to the right as bits grow, and at 8 bits nothing should be cut off.",
    "Cutting the range off makes a large error on the few weights beyond it and smaller ones on all others, because the steps shrink. With few bits steps "
    "are wide and clipping pays; with many bits the steps are small already and only the loss remains. The MSE clip of RTN and GPTQ "
    "searches this arch group by group. The curve weighs all weights alike; the model does not, so check the perplexity too.",
    draw, summary,
    {"shares": [0.5, 1.0], "sqnr": {"3": [9.0, 8.0], "8": [20.0, None]}, "rows": 32, "of": 384, "granularity": "channel", "group_size": 64},
)  # fmt: skip
