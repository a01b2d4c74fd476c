"""Drawings that walkthroughs and questions need beside the page's figures: runs with their intervals, curves of arithmetic, codes of one group.

Pure functions that give Plotly figures as plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, Plot, charts, finite, layout, plot, span
from explorer.figures.memory import tokens
from explorer.learn.answers import FUNCTIONS
from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.records import Answer, Report
from explorer.vocabulary import term

POINTS = 60


def title(metric: str, reports: Sequence[Report]) -> str:
    """What a metric is called beside its values; of a cache with the tokens it is for."""
    named = term(metric)
    return named.axis if metric != "memory_kv_cache" else f"{named.called} at {tokens(reports)}, {named.unit}"


def draw(chart: Mapping[str, Any], runs: Sequence[str], reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> Plot:
    """The chart that a step or a question describes: kind "dots", "points", "curve", "series", "codes", "bars", or
    "task" for a figure of the page (figure) of a task's answer (answer); see the functions below for the rest.
    """
    kind = chart["kind"]
    if kind == "dots":
        return dots([reports[name] for name in runs], chart["metric"], chart.get("names"), chart.get("log", False))
    if kind == "curve":
        return curve(chart)
    if kind == "points":
        return points(chart, reports, answers)
    if kind == "series":
        return series(chart, reports, answers)
    if kind == "task":
        return charts()[chart["figure"]].draw(answers[chart["answer"]].data)
    if kind == "bars":
        return bars(chart, answers)
    return codes(answers[chart["answer"]])


def dots(reports: Sequence[Report], metric: str, names: Sequence[str] | None = None, log: bool = False) -> Plot:
    """A metric of each report with its interval, one a row. names: shown instead of the reports' own."""
    shown = ["<br>".join(wrap(name, 20)) for name in names or (r.name for r in reports)]
    found = [(i, r.find(metric)) for i, r in enumerate(reports)]
    data = []
    for i, m in found:
        if m is not None and finite(m.value):
            up, down = span(m)
            data.append(
                {"type": "scatter", "mode": "markers", "x": [m.value], "y": [shown[i]], "showlegend": False, "name": shown[i],
                 "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5], "size": 12},
                 "error_x": {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 2}}
            )  # fmt: skip
    axis = {"type": "log"} if log else {"rangemode": "tozero"} if metric != "perplexity" else {}
    shape = layout(title(metric, reports) + (" (log)" if log else ""), "", 110 + 44 * len(reports), xaxis=axis)
    shape["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return plot(data, shape)


def curve(chart: Mapping[str, Any]) -> Plot:
    """Arithmetic over a range: low, high, log (of both axes), x and y (axis titles), lines (name and expression of x)."""
    low, high, log = chart["low"], chart["high"], chart.get("log", False)
    at = [low * (high / low) ** (i / POINTS) if log else low + (high - low) * i / POINTS for i in range(POINTS + 1)]
    data: list[dict] = []
    for i, line in enumerate(chart["lines"]):
        values = [evaluate(line["y"], {"x": x}, FUNCTIONS) for x in at]
        data.append(
            {"type": "scatter", "mode": "lines", "x": at, "y": values, "name": line["name"],
             "line": {"color": COLOURS[(i + 1) % 5], "dash": DASHES[i % 5], "width": 2.2}}
        )  # fmt: skip
    scale = {"type": "log"} if log else {}
    return plot(data, layout(chart["x"], chart["y"] + " (arithmetic)", 360, xaxis=scale, yaxis={"type": "log"} if chart.get("logy", log) else {}))


def points(chart: Mapping[str, Any], reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> Plot:
    """Numbers of runs and answers with their intervals, one a row: x (axis title), entries (name, value, low, high; all but the name expressions)."""
    functions, data = Facts(reports, answers).functions(), list[dict]()
    for i, entry in enumerate(chart["entries"]):
        value, low, high = (evaluate(entry.get(key, entry["value"]), {}, functions) for key in ("value", "low", "high"))
        data.append(
            {"type": "scatter", "mode": "markers", "x": [value], "y": [entry["name"]], "showlegend": False, "name": entry["name"],
             "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5], "size": 12},
             "error_x": {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low], "thickness": 2}}
        )  # fmt: skip
    shape = layout(chart["x"], "", 110 + 44 * len(data), xaxis={"rangemode": "tozero"})
    shape["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return plot(data, shape)


def series(chart: Mapping[str, Any], reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> Plot:
    """Lists of numbers by their position: x and y (axis titles), log (of y), lines (name, and an expression of a list)."""
    functions, data = Facts(reports, answers).functions(), list[dict]()
    for i, line in enumerate(chart["lines"]):
        values = evaluate(line["y"], {}, functions)
        data.append(
            {"type": "scatter", "mode": "lines+markers", "x": list(range(1, len(values) + 1)), "y": values, "name": line["name"],
             "line": {"color": COLOURS[i % 5], "dash": DASHES[i % 5], "width": 1.6}, "marker": {"symbol": MARKERS[i % 5], "size": 6}}
        )  # fmt: skip
    return plot(data, layout(chart["x"], chart["y"], 360, yaxis={"type": "log"} if chart.get("log") else {}))


def bars(chart: Mapping[str, Any], answers: Mapping[str, Answer]) -> Plot:
    """Entries of one task's answer, two or more lists over the same names: answer, names (key), values (name -> key), y (axis title), log."""
    found = answers[chart["answer"]].data
    data = [
        {"type": "scatter", "mode": "lines+markers", "x": found[chart["names"]], "y": found[key], "name": name,
         "line": {"color": COLOURS[(i + 1) % 5], "dash": DASHES[i % 5], "width": 1.4}, "marker": {"symbol": MARKERS[i % 5], "size": 6}}
        for i, (name, key) in enumerate(chart["values"].items())
    ]  # fmt: skip
    return plot(data, layout("layer", chart["y"], 400, yaxis={"type": "log"} if chart.get("log") else {}, xaxis={"tickangle": -60, "tickfont": {"size": 10}}))


def codes(answer: Answer) -> Plot:
    """Weights of one group (task "group") against the values their codes stand for, with the grid."""
    found, lines = answer.data, []
    for level in found["grid"]:
        lines.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "line": {"color": "rgba(128,128,128,0.35)", "width": 1}})
    places = list(range(len(found["values"])))
    data = [
        {"type": "scatter", "mode": "markers", "x": places, "y": found[key], "name": name, "marker": {"color": COLOURS[i + 1], "symbol": MARKERS[i], "size": 7}}
        for i, (key, name) in enumerate((("values", "weight"), ("dequantized", "what its code stands for")))
    ]
    return plot(data, layout("weight in the group", "value; lines: the grid", 360, yaxis={"showgrid": False, "zeroline": False}) | {"shapes": lines})


def words(chart: Mapping[str, Any], runs: Sequence[str], reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> str:
    """A chart of runs in words, for those who do not see it."""
    if chart.get("kind") == "points":
        shown = points(chart, reports, answers)["data"]
        return f"{chart['x']}: " + "; ".join(f"{dot['name']} {dot['x'][0]:.3g}" for dot in shown) + "."
    if chart.get("kind") == "task":
        return charts()[chart["figure"]].summary(answers[chart["answer"]].data)
    if chart.get("kind") != "dots":
        return ""
    names = list(chart.get("names") or (reports[run].name for run in runs))
    parts = []
    for name, run in zip(names, runs, strict=True):
        m = reports[run].find(chart["metric"])
        if m is not None and isinstance(m.value, int | float):
            parts.append(f"{name}: {m.value:.4g}" + (f" ({m.low:.4g} to {m.high:.4g})" if m.low is not None and math.isfinite(m.low) else ""))
    return f"{title(chart['metric'], [reports[run] for run in runs])}. " + "; ".join(parts) + "."
