"""What a model needs by part, at the widths people compare, against the memory of a chosen accelerator."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, Chart, Plot, layout, plot
from explorer.published import PUBLISHED

PARTS = ("attention", "feed-forward", "router", "embedding", "output head", "norms and biases", "KV cache", "activations")
LOOKS = {
    "attention": (COLOURS[1], ""), "feed-forward": (COLOURS[1], "/"), "router": (COLOURS[0], "x"), "embedding": (COLOURS[0], ""),
    "output head": (COLOURS[0], "/"),
    "norms and biases": (COLOURS[0], "."), "KV cache": (COLOURS[2], ""), "activations": (COLOURS[4], ""),
}  # fmt: skip
LEAST = 0.002  # share of the largest bar below which a part is left out of the figure


def draw(data: dict[str, Any]) -> Plot:
    """data: bars, a list of {name, parts: {part: bytes}}; device: {name, bytes} that may be filled; count: how many of it."""
    bars = data.get("bars", [])
    if not bars:
        return plot([], layout("", "", 360))
    names, most = [bar["name"] for bar in bars], max(sum(bar["parts"].values()) for bar in bars)
    traces = []
    for part in PARTS:
        sizes = [bar["parts"].get(part, 0) / 1e9 for bar in bars]
        if max(sizes) * 1e9 > LEAST * most:
            colour, pattern = LOOKS[part]
            traces.append({"type": "bar", "orientation": "h", "y": names, "x": sizes, "name": part, "marker": {"color": colour, "pattern": {"shape": pattern}},
                           "hovertemplate": f"{part}: %{{x:.2f}} GB (estimated)<extra></extra>"})  # fmt: skip
    shape = layout("GB (10⁹ bytes, estimated)", "", 380, barmode="stack", legend={"traceorder": "normal"}, yaxis={"autorange": "reversed"}, margin={"l": 70})
    device = data.get("device")
    if device:
        lines = [n * device["bytes"] / 1e9 for n in (1, 2, 4, 8) if n == 1 or (n * device["bytes"] < 1.15 * most)]
        shape["shapes"] = [{"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": COLOURS[3], "dash": "dash"}} for x in lines]
        shape["annotations"] = [
            {"x": x, "y": 0.02, "yref": "paper", "text": f"{round(x * 1e9 / device['bytes'])} × {device['name']}", "showarrow": False, "textangle": -90,
             "xanchor": "right", "yanchor": "bottom", "font": {"size": 11}} for x in lines
        ]  # fmt: skip
        shape["xaxis"]["range"] = [0, 1.04 * max(most / 1e9, lines[0])]
    return plot(traces, shape)


def summary(data: dict[str, Any]) -> str:
    bars = data.get("bars", [])
    if not bars:
        return "No architecture chosen."
    kept = ("KV cache", "activations")
    weights = {bar["name"]: sum(v for part, v in bar["parts"].items() if part not in kept) / 1e9 for bar in bars}
    said = ", ".join(f"{size:,.1f} GB {'as' if name == PUBLISHED else 'in'} {name}" for name, size in weights.items())
    cache = bars[0]["parts"].get("KV cache", 0) / 1e9
    share = 100 * cache / (min(sum(bar["parts"].values()) for bar in bars) / 1e9)
    held = f"The KV cache takes {cache:,.2f} GB at any of them, {share:.0f}% of the smallest bar."
    return " ".join(filter(None, (f"{data.get('model', 'The model')}: weights take {said}.", data.get("note", ""), held)))


CHART = Chart(
    "plan", "What it needs", "See how the blue part shrinks with the bits while the orange one stays: at long contexts and many users the cache decides.",
    "Weights are counted exactly: codes, a 16-bit scale for each group, and what stays in 16 bits. That is why 4 bits save less than a factor of four, "
    "least of all in a small model with a large vocabulary. The cache holds keys and values of every token of every user. Activations are an estimate of "
    "the largest step. The dashed lines are what may be filled of a device's memory: of a card of 80 GB, nine tenths of the 79.1 GiB that its driver "
    "reports, which is 76.4 GB. Several devices may hold some of the cache more than once: see the table.",
    draw, summary,
    {"model": "tiny", "bars": [{"name": "BF16", "parts": {"attention": 2e9, "KV cache": 1e9}}, {"name": "INT4", "parts": {"attention": 5e8, "KV cache": 1e9}}],
     "device": {"name": "L4", "bytes": 2.3e10}},
    kinds=lambda data: ("estimated",),
)  # fmt: skip
