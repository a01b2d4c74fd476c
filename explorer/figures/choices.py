"""Multiple choice: how many answers a quantized model loses and gains against 16 bits, beside its accuracy."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, Chart, Plot, layout, plot

DIRECTIONS = (("lost", "right before, wrong after", 2, -1), ("gained", "wrong before, right after", 3, 1), ("moved", "one wrong answer for another", 0, 1))


def ticks(rows: list[dict[str, Any]]) -> Plot:
    """An axis that counts answers to both sides: lost ones lie left of zero and are no negative number."""
    most = max((max(row["lost"], row["gained"] + row["moved"]) for row in rows), default=0)
    step = next((size for size in (1, 2, 5, 10, 20, 50, 100, 200) if size * 4 >= most), 500)
    places = range(-step * (most // step + 1), step * (most // step + 2), step)
    return {"tickvals": list(places), "ticktext": [f"{abs(place)}" for place in places]}


def draw(data: dict[str, Any]) -> Plot:
    rows = data.get("rows", [])
    names = [row["label"] for row in rows]
    traces = [
        {"type": "bar", "orientation": "h", "y": names, "x": [sign * row[key] for row in rows], "name": title, "marker": {"color": COLOURS[colour]},
         "customdata": [row[key] for row in rows], "hovertemplate": "%{y}: %{customdata} answers, " + title + "<extra></extra>"}
        for key, title, colour, sign in DIRECTIONS
    ] if rows else []  # fmt: skip
    shape = layout(
        "answers that quantizing changed (left: lost)",
        "",
        max(300, 170 + 40 * len(rows)),
        yaxis={"autorange": "reversed"},
        xaxis=ticks(rows),
        barmode="relative",
    )
    return plot(traces, shape)


def summary(data: dict[str, Any]) -> str:
    rows = data.get("rows", [])
    if not rows:
        return "Not measured yet."
    base = rows[0]["base"]
    parts = [
        f"Of {rows[0]['items']:,} questions the 16-bit model answers {base['percent']:.1f}% rightly ({base['low']:.1f} to {base['high']:.1f}; guessing: 25%)"
    ]
    for row in rows:
        apart = "no measurable difference" if row["p"] > 0.05 else "better" if row["difference"] > 0 else "worse"
        other = row["lost"] + row["gained"] + row["moved"]
        ends = f"{row['low']:+.1f} to {row['high']:+.1f}; " if row["low"] is not None else ""
        change = f"a difference of {row['difference']:+.1f} points"
        test = f"{ends}exact McNemar p = {row['p']:.2g}: {apart}"
        parts.append(f"**{row['label']}** {row['quantized']['percent']:.1f}%, {change} ({test}); {other or 'no'} answers are others")
    return "; ".join(parts) + "."


CHART = Chart(
    "choices", "Same accuracy, other answers",
    "See bars on both sides: answers lost and gained cancel in the accuracy, but each is a question that the quantized model now answers otherwise.",
    "Which of four continuations of a passage is the true one? The other three come from nearby in the text, and a model answers with the one it gives "
    "the highest probability. Accuracy only sees how many answers were lost less how many were gained, so a quantized model can score the same and be "
    "another model (Dutta et al. 2024, arXiv 2407.09141). McNemar's test compares lost with gained; of an accuracy alone, a few hundred questions cannot tell "
    "points. Divergence sees every change, which is why it rejects a configuration sooner.",
    draw, summary,
    {"rows": [{"label": "RTN 3-bit g64", "items": 100, "lost": 6, "gained": 3, "moved": 2, "p": 0.51, "difference": -3.0, "low": -8.9, "high": 2.9,
               "base": {"right": 74, "percent": 74.0, "low": 64.6, "high": 81.6}, "quantized": {"right": 71, "percent": 71.0, "low": 61.5, "high": 79.0}}]},
)  # fmt: skip
