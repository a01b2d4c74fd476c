"""Outlier dial: the quality of int8 methods on the whole model against the strength of the outliers planted in it."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, DASHES, FLOOR, MARKERS, Chart, Plot, layout, plot
from explorer.records import significant

LINES = ("W8A8 per tensor", "W8A8 per token", "LLM.int8()", "SmoothQuant", "8-bit weights only")
PAINT = dict(zip(LINES, (COLOURS[2], COLOURS[4], COLOURS[1], COLOURS[3], COLOURS[0]), strict=True))


def _points(data: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(data.get("points", []), key=lambda point: point["strength"])


def draw(data: dict[str, Any]) -> Plot:
    shape = layout(
        "strength of the planted outliers (times)", "KL divergence to 16 bits, nats (log)", 380, yaxis={"type": "log"}, xaxis={"type": "log"}, showlegend=True
    )
    points = _points(data)
    ticks = [p["strength"] for p in points]
    shape["xaxis"] |= {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    traces = []
    for i, name in enumerate(LINES if points else ()):
        found = [(p["strength"], *p["methods"][name]["kld_mean"], p["methods"][name]["top1_agreement"][0]) for p in points if name in p["methods"]]
        if found:
            height = [max(f[1], FLOOR / 10) for f in found]
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "x": [f[0] for f in found], "y": height, "name": name,
                 "line": {"color": PAINT[name], "dash": DASHES[i], "width": 1.8}, "marker": {"symbol": MARKERS[i], "size": 8, "color": PAINT[name]},
                 "error_y": {"type": "data", "symmetric": False, "array": [max(0.0, f[3] - h) for f, h in zip(found, height, strict=True)],
                             "arrayminus": [max(0.0, h - max(f[2], FLOOR / 10)) for f, h in zip(found, height, strict=True)], "thickness": 1.2},
                 "text": [f"same top token {f[4]:.1f}%" for f in found], "hovertemplate": "%{x:g} times: %{y:.4g} nats, %{text}"}
            )  # fmt: skip
    return plot(traces, shape, "Nothing is planted yet: measure a strength below.")


def summary(data: dict[str, Any]) -> str:
    points = _points(data)
    if not points:
        return "Nothing is planted yet: choose a strength and measure."
    last = points[-1]
    kl = {name: m["kld_mean"][0] for name, m in last["methods"].items()}
    same = f"The 16-bit model computes the same: its logits moved by {last['gap']:.3g} in bfloat16 and by {last['gap_float32']:.1e} of the largest in float32"
    told = ", ".join(f"{name} {significant(value)}" for name, value in kl.items())
    text = f"At strength {last['strength']:g} in channels {', '.join(map(str, last['channels']))}: KL divergence in nats: {told}. {same}."
    if kl.get("8-bit weights only", 0.0) > 0.02 and kl.get("LLM.int8()", 0.0) > 0.5 * kl["8-bit weights only"]:
        text += (
            " LLM.int8() keeps the inputs but its weights are int8 with a scale a row: the columns that were made smaller are rounded away, as with "
            "8-bit weights only. "
            "SmoothQuant scales them back first."
        )
    return text


_METHODS = {name: {"label": name, "kld_mean": [0.01, 0.005, 0.02], "top1_agreement": [95.0, 94.0, 96.0], "perplexity_delta": [0.2, 0.0, 0.4]} for name in LINES}
CHART = Chart(
    "outlier_dial", "Outlier dial: the whole model",
    "See per-tensor int8 break first, per-token next, and SmoothQuant stay where it was at every strength.",
    "Large models grow outlier channels in training; this small one has few. Here they are planted: some channels of every normalisation grow and the "
    "columns that read them shrink by "
    "the same power of two, so the 16-bit model computes what it did, to the last bit. What a method loses it loses to the outliers. Unlike in a grown "
    "model, the weights' columns "
    "become small here, which hurts every method with one weight scale a row; the line for 8-bit weights alone shows that part.",
    draw, summary,
    {"points": [{"strength": 1.0, "channels": [3, 5], "methods": _METHODS, "gap": 0.0, "gap_relative": 0.0, "gap_float32": 0.0, "tokens": 1024}]},
    kinds=lambda data: ("simulated",),
)  # fmt: skip
