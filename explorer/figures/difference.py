"""How the difference between two configurations settles while more tokens are scored."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, GRID, Chart, Plot, finite, layout, plot


def draw(data: dict[str, Any]) -> Plot:
    """data: looks and margin as the task "distinguish" gives them; `looks` alone while it runs."""
    looks = [look for look in data.get("looks", []) if finite(look["difference"])]
    if not looks:
        return plot([], layout("tokens scored by both (log)", "", 300), "Nothing compared yet: choose two and press Tell apart.")
    known = [look for look in looks if finite(look["low"]) and finite(look["high"])]
    traces: list[dict] = [
        {"type": "scatter", "mode": "lines+markers", "x": [look["tokens"] for look in looks], "y": [look["difference"] for look in looks],
         "line": {"color": COLOURS[0], "dash": "dot"}, "marker": {"color": COLOURS[1], "size": 9}, "showlegend": False,
         "hovertemplate": "%{x:,} tokens: %{y:+.3f}%<extra></extra>"},
        {"type": "scatter", "mode": "markers", "x": [look["tokens"] for look in known], "y": [look["difference"] for look in known], "showlegend": False,
         "marker": {"size": 1, "color": COLOURS[1]}, "hoverinfo": "skip",
         "error_y": {"type": "data", "symmetric": False, "array": [look["high"] - look["difference"] for look in known],
                     "arrayminus": [look["difference"] - look["low"] for look in known], "thickness": 2, "width": 5}},
    ]  # fmt: skip
    shape = layout("tokens scored by both (log)", "perplexity of the first over the second, %", 320, xaxis={"type": "log"})
    zero = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": COLOURS[2], "width": 1.5}}
    margin = data.get("margin", 0)
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -margin, "y1": margin, "fillcolor": GRID, "line": {"width": 0}, "layer": "below"}
    return plot(traces, shape | {"shapes": [band, zero]})


def summary(data: dict[str, Any]) -> str:
    looks, names = data.get("looks", []), data.get("names", ["the first", "the second"])
    if not looks:
        return "Nothing compared yet."
    last = looks[-1]
    interval = f"between {last['low']:+.2f}% and {last['high']:+.2f}%" if finite(last["low"]) and finite(last["high"]) else "not bounded yet"
    seen = f"after {last['tokens']:,} tokens"
    said = {
        "first": f"{names[0]} is better than {names[1]}, certain {seen}: {names[0]}'s perplexity is {amount(last['high'], last['low'])} lower.",
        "second": f"{names[1]} is better than {names[0]}, certain {seen}: {names[0]}'s perplexity is {amount(last['low'], last['high'])} higher.",
        "equal": f"{names[0]} and {names[1]} are the same for practical purposes, certain {seen}: the difference is {interval}, inside ±{data.get('margin')}%.",
        "undecided": f"{names[0]} and {names[1]} are not distinguishable on all {last['tokens']:,} tokens of this text: the difference is {interval}.",
    }  # fmt: skip
    return said.get(data.get("verdict", ""), f"Not certain yet {seen}: the difference is {interval}.")


def amount(near: float | None, far: float | None) -> str:
    """An interval of a difference whose sign is told in words: "0.99% to 4.57%", the end nearer to zero first."""
    return f"{abs(near):.2f}% to {abs(far):.2f}%" if finite(near) and finite(far) else "by an amount not bounded yet"


CHART = Chart(
    "difference", "Is one of them better?",
    "See whether the bar leaves the orange line (one is better) or fits into the grey band (no difference that matters).",
    "Looking at an ordinary 95% interval again and again until it excludes zero finds a difference between equal things far more often than in 5% of "
    "cases. These bars spend the allowed error over the looks, almost none of it early (Lan and DeMets 1983), so stopping at the first certain "
    "look keeps the promise. Both configurations score the same tokens, so most of the noise cancels.",
    draw, summary,
    {"looks": [{"tokens": 960, "difference": 3.0, "low": None, "high": None}, {"tokens": 1920, "difference": 2.6, "low": 0.4, "high": 4.9}],
     "margin": 0.5, "names": ["RTN 4-bit g64", "GPTQ 4-bit g64"], "verdict": "second"},
)  # fmt: skip
