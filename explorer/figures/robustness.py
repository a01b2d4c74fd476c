"""Do small changes of a prompt flip the quantized model's next token more often than the baseline's?"""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, MARKERS, Chart, Plot, layout, plot


def draw(data: dict[str, Any]) -> Plot:
    rows = data.get("rows", [])
    traces = []
    for key, i, title in (("base", 0, "16-bit baseline"), ("quantized", 1, "quantized")) if rows else ():
        values = [row[key] for row in rows]
        traces.append(
            {"type": "scatter", "mode": "markers", "x": [v["percent"] for v in values], "y": [row["label"] for row in rows], "name": title,
             "marker": {"color": COLOURS[i], "symbol": MARKERS[i], "size": 11}, "hovertemplate": "%{x:.1f}% of prompts",
             "error_x": {"type": "data", "symmetric": False, "array": [v["high"] - v["percent"] for v in values],
                         "arrayminus": [v["percent"] - v["low"] for v in values], "thickness": 1.5, "color": COLOURS[i]}}
        )  # fmt: skip
    height = max(300, 170 + 44 * len(rows))
    return plot(traces, layout("prompts whose next token flips, %", "", height, yaxis={"autorange": "reversed"}, scattermode="group", showlegend=True))


def summary(data: dict[str, Any]) -> str:
    parts = []
    for row in data.get("rows", []):
        base, own = row["base"], row["quantized"]
        verdict = "no measurable difference" if row["p"] > 0.05 else "more easily" if own["percent"] > base["percent"] else "less easily"
        parts.append(
            f"{row['label']}: {own['percent']:.1f}% flip, the baseline {base['percent']:.1f}% ({row['only_quantized']} prompts flip only quantized, "
            f"{row['only_base']} only the baseline; exact McNemar p = {row['p']:.2g}): {verdict}; {row['moved']:.1f}% changed by quantizing alone"
        )
    return f"On {data['rows'][0]['prompts']:,} prompts. " + "; ".join(parts) + "." if parts else "Not measured yet."


CHART = Chart(
    "robustness", "Small changes of the prompt",
    "See whether the two marks of a row are apart beyond their bars: a quantized model that is more brittle flips more often than the baseline does.",
    "A typo, a missing word or a word in capitals is put into many prompts, and each model's likeliest next token is compared with and without it. Every model "
    "flips sometimes, so only the difference on the same prompts counts: the test (McNemar's, exact) looks at prompts on which one model flips and the other "
    "does not. Bars are 95% intervals of each rate alone and wider than the paired comparison needs.",
    draw, summary,
    {"rows": [{"label": "RTN 3-bit", "prompts": 100, "only_base": 2, "only_quantized": 6, "p": 0.29, "moved": 12.0,
               "base": {"percent": 20.0, "low": 15.0, "high": 26.0}, "quantized": {"percent": 24.0, "low": 18.0, "high": 30.0}}]},
)  # fmt: skip
