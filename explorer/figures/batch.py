"""Batch sweep: measured tokens per second by batch size for weight-only bits, 16 bits and W8A8, each beside its own roofline, crossings marked."""

from __future__ import annotations

import math
from typing import Any

from explorer.figures import COLOURS, MARKERS, Chart, Plot, layout, plot
from explorer.figures.roofline import unmeasured

SEE = "See where the lines cross: with few sequences the bytes of the weights or the overhead of a step decide, with many the arithmetic."
FEW = 3  # roles at most: each has its colour and marker


def bound(point: dict[str, Any], roof: dict[str, Any], arm: dict[str, Any]) -> float:
    """Tokens/s of an arm if reading, or multiplying, at the measured rates were all that takes time."""
    peak = roof[arm["peak"]] or roof["matmul_16"]
    return point["batch"] / max(point["bytes"] / roof["read"], point["flops"] / peak)


def draw(data: dict[str, Any]) -> Plot:
    traces: list[dict] = []
    sizes = sorted({point["batch"] for arm in data.get("arms", []) for point in arm["points"]})
    axes = {"xaxis": {"type": "log", "tickvals": sizes, "ticktext": [str(size) for size in sizes]}, "yaxis": {"type": "log", "dtick": "D2", "tickformat": "~s"}}
    shape = layout("sequences at once (log)", "tokens/s, all sequences (log)", height=400, **axes)
    for i, arm in enumerate(data.get("arms", [])):
        points, colour = arm["points"], COLOURS[(1, 0, 3)[i % FEW]]
        xs, ys = [p["batch"] for p in points], [p["tokens_per_second"] for p in points]
        name = arm["label"] if arm["role"] in ("chosen", "16 bits") else f"{arm['role']}: {arm['label']}"
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": xs, "y": ys, "name": name, "line": {"color": colour}, "marker": {"symbol": MARKERS[i], "size": 9},
             "error_y": {"type": "data", "symmetric": False, "array": [max(0, p["high"] - y) for p, y in zip(points, ys, strict=True)],
                         "arrayminus": [max(0, y - p["low"]) for p, y in zip(points, ys, strict=True)], "thickness": 1.2},
             "customdata": [p["prefill_tokens_per_second"] for p in points],
             "hovertemplate": "batch %{x}: %{y:,.0f} tokens/s (bars: 20th to 80th percentile)<br>reading the prompts: %{customdata:,.0f} tokens/s"}
        )  # fmt: skip
        traces.append(
            {"type": "scatter", "mode": "lines", "x": xs, "y": [bound(p, data["roof"], arm) for p in points], "showlegend": False,
             "line": {"color": colour, "dash": "dot", "width": 1.5}, "hovertemplate": f"{name}: roofline %{{y:,.0f}} tokens/s (estimated)<extra></extra>"}
        )  # fmt: skip
    if traces:
        dots = {"mode": "lines", "x": [None], "y": [None], "name": "dotted: roof of the line of its colour (estimated)", "hoverinfo": "skip"}
        traces.append({"type": "scatter", **dots, "line": {"color": COLOURS[0], "dash": "dot", "width": 1.5}})
    marks = [
        ("16 bits overtake" if role == "16 bits" else f"{role} overtakes", batch)
        for role, batch in data.get("crossing", {}).items()
        if batch is not None and batch > 1
    ]
    shape["shapes"] = [
        {"type": "line", "x0": batch, "x1": batch, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": COLOURS[2], "dash": "dash"}} for _, batch in marks
    ]
    plotted = plot(traces, shape)
    if marks:
        plotted["layout"]["annotations"] = [
            {
                "x": math.log10(batch),
                "y": 0.02 + 0.09 * i,
                "yref": "paper",
                "text": f"{who} at {batch:.0f}",
                "showarrow": False,
                "xanchor": "left",
            }
            for i, (who, batch) in enumerate(marks)
        ]
    return unmeasured(plotted, "Sweep the batch")


def summary(data: dict[str, Any]) -> str:
    return f"**{data['model']}, {data['context']} tokens of context.** {data['sentence']}" if data else "Not measured yet."


def looks(data: dict[str, Any]) -> str:
    """What is seen in the lines, and which of them overhead holds down; a hint alone where nothing was measured or other work disturbed it."""
    arms, crossing = data.get("arms", []), data.get("crossing", {})
    if len(arms) < 2 or not crossing:
        return SEE
    reach, mine = min(arm["points"][-1]["batch"] for arm in arms), arms[0]["label"]
    parts = []
    for role, batch in crossing.items():
        s, is_ = ("", "are") if role == "16 bits" else ("s", "is")
        never, at = f"{role} stay{s} behind up to {reach} sequences", f"{role} overtake{s} at about {batch or 0:.0f} sequences"
        parts.append(never if batch is None else at if batch > 1 else f"{role} {is_} ahead at every batch")
    seen = f"See where the lines cross {mine}: {', '.join(parts)}."
    columns = list(zip(*(arm["points"] for arm in arms), strict=False))
    last = [min(arms, key=lambda arm: arm["points"][i]["tokens_per_second"]) for i in range(len(columns))]
    if any(arm is not last[0] for arm in last):
        return seen
    firsts = [(arm, arm["points"][0]) for arm in arms]
    steps = [1e3 * one["batch"] / one["tokens_per_second"] for _, one in firsts]
    rests = [step - 1e3 * one["batch"] / bound(one, data["roof"], arm) for step, (arm, one) in zip(steps, firsts, strict=True)]
    at = next(i for i, arm in enumerate(arms) if arm is last[0])
    name = last[0]["label"] if last[0]["role"] == "chosen" else last[0]["role"]
    seen += f" {name[0].upper()}{name[1:]} {'are' if name == '16 bits' else 'is'} the slowest at every batch"
    if rests[at] < steps[at] / 2:
        return f"{seen}."
    over = f"{rests[at]:.2f} of {steps[at]:.2f} ms of a step with one sequence are neither reading nor multiplying at the measured rates, but overhead"
    return f"{seen}: {over}; the least here is {min(rests):.2f}."


def _points(scale: float) -> list[dict[str, Any]]:
    return [
        {"batch": b, "tokens_per_second": scale * b**0.8, "low": scale * b**0.8 * 0.9, "high": scale * b**0.8 * 1.1, "n": 16,
         "prefill_tokens_per_second": 900.0, "bytes": 1e7, "flops": 2e7 * b}
        for b in (1, 2, 4)
    ]  # fmt: skip


CHART = Chart(
    "batch", "Many sequences at once",
    SEE,
    "With one sequence each weight is read for one token, so the bytes of the weights set the pace. With many, each weight that was read serves all of them "
    "and the multiplications set it: weights in 4 bits must be unpacked to 16 bits before they are multiplied, which costs time and saves none, while W8A8 "
    "multiplies in 8 bits. The dotted lines are each configuration's own roofline from the rates measured here.",
    draw, summary,
    {"model": "demo", "context": 64, "roof": {"read": 2e10, "copy": 2e10, "matmul_16": 3e11, "matmul_8": 5e11, "sheet": None},
     "crossing": {"16 bits": 2.5, "W8A8": None},
     "arms": [{"role": role, "label": label, "peak": "matmul_16", "points": _points(scale)}
              for role, label, scale in (("chosen", "RTN 4-bit g64", 900), ("16 bits", "16-bit baseline", 500))],
     "sentence": "An example."},
    kinds=lambda data: ("measured", "estimated"), looks=looks,
)  # fmt: skip
