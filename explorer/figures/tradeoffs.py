"""Trade-offs: every configuration of a sweep or survey over two of the axes people trade; the best of them joined, the beaten ones faded."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from explorer.figures import COLOURS, FLOOR, MARKERS, Chart, Plot, finite, layout, plot, span
from explorer.findings import counted, timed_on
from explorer.paired import by_window, windows_of
from explorer.records import Measurement, Report, change

VIEWS = {
    "bits": ("bits_per_weight", "stored bits per weight", 1.0), "memory": ("weight_bytes", "all weights in memory, MB", 1e-6),
    "latency": ("decode_tokens_per_second", "decoding, ms a token", 1000.0), "calibration": ("quantize_seconds", "time to quantize, s (log)", 1.0),
    "roofline": ("decode_limit", "bandwidth limit, ms a token (estimated, log)", 1000.0),
}  # fmt: skip
INVERTED = ("latency", "roofline")  # stored as a rate, shown as a time
BY_DEVICE = ("latency", "calibration", "roofline", "memory")
QUALITY = {"kld_mean": "KL divergence, nats (log)", "perplexity_delta": "perplexity increase, % (log)"}
APART = 0.07  # share of an axis that two names in the figure must be apart
OTHERS = "other methods"
NO_LIMIT = "No point says a limit and the rate of memory that it is for. Run a sweep."
LOOKS = {
    "bits": "nothing measured is better at that size or smaller", "memory": "nothing measured is better in as little memory",
    "latency": "nothing measured is better and as fast", "calibration": "nothing measured is better after as short a time",
}  # fmt: skip


def point_of(report: Report, key: str, origin: str) -> dict[str, Any]:
    """One configuration as plain data: key, name, method, origin ("recorded", "measured now", ...), device, the measurements by metric, and what its
    limit is from, and windows: the window means behind each metric of quality, by which points are paired.
    """
    found = {
        m.metric: [m.value if finite(m.value) else None, m.low if finite(m.low) else None, m.high if finite(m.high) else None]
        for m in report.measurements if not m.layer and isinstance(m.value, int | float)
    }  # fmt: skip
    wanted = {name: found[name] for name in {*QUALITY, *(metric for metric, _, _ in VIEWS.values()), "top1_agreement"} if name in found}
    spec = report.experiment.spec
    return {"key": key, "name": report.name, "method": "none" if spec.is_baseline else spec.method, "origin": origin,
            "device": report.provenance.get("device", ""), "metrics": wanted,
            "windows": {metric: windows_of(report, metric) for metric in QUALITY},
            "limit": counted(limit, report) if (limit := report.find("decode_limit")) else ""}  # fmt: skip


def across(point: dict[str, Any], view: str) -> float | None:
    """Where a point stands on the view's x axis, None when that was not measured."""
    metric, _, factor = VIEWS[view]
    value = point["metrics"].get(metric, [None])[0]
    if not finite(value) or (view in (*INVERTED, "calibration") and value <= 0):
        return None
    return factor / value if view in INVERTED else factor * value


def up(point: dict[str, Any], metric: str) -> tuple[float, float | None, float | None, bool] | None:
    """(y, low, high, whether y is only an upper limit) on the log axis of quality, None when it was not measured."""
    value, low, high = point["metrics"].get(metric, [None, None, None])
    if not finite(value):
        return None
    if value <= 0 or (metric == "perplexity_delta" and finite(low) and low <= 0):
        return max(value, high if finite(high) else FLOOR, FLOOR), None, None, True
    return value, low, high, False


def surely_better(one: tuple, other: tuple) -> bool:
    """Whether a point of `standing` is surely below another in y: paired by window, or where that cannot be, beyond both intervals."""
    found = by_window(one[4], other[4])
    if found is not None:
        return found[2] < 0
    return (one[3] if one[3] is not None else one[1]) < (other[2] if other[2] is not None else other[1])


def standing(points: Sequence[tuple[float, float, float | None, float | None, Sequence[float] | None]]) -> list[str]:
    """For each (x, y, low, high, window means): "best" when no other is at most as large in both and smaller in one; "beaten" when one that is no larger
    in x is surely better in y; "near" otherwise.
    """
    found = []
    for i, (x, y, *_) in enumerate(points):
        others = [p for j, p in enumerate(points) if j != i and p[0] <= x and p[1] <= y and (p[0] < x or p[1] < y)]
        found.append("beaten" if any(surely_better(p, points[i]) for p in others) else "near" if others else "best")
    return found


def comparable(data: dict[str, Any]) -> tuple[list[dict[str, Any]], int, str]:
    """(points that may share a figure, how many were left out for their device, the device): times of two devices are never put side by side."""
    points, view = data.get("points", []), data.get("view", "bits")
    if view not in BY_DEVICE or not points:
        return list(points), 0, ""
    device = timed_on([(p["device"], p["origin"] == "recorded") for p in points])
    kept = [p for p in points if p["device"] == device]
    return kept, len(points) - len(kept), device


def draw(data: dict[str, Any]) -> Plot:
    """data: points as `point_of` gives them, view: one of VIEWS, quality: one of QUALITY; model: whose points they are."""
    view, metric = data.get("view", "bits"), data.get("quality", "kld_mean")
    points, _, _ = comparable(data)
    if view == "roofline":
        return _roofline(points)
    placed = [(p, x, y) for p in points if p["method"] != "none" and (x := across(p, view)) is not None and (y := up(p, metric)) is not None]
    kinds = standing([(x, *y[:3], p.get("windows", {}).get(metric)) for p, x, y in placed])
    best = sorted(((p, x, y) for (p, x, y), kind in zip(placed, kinds, strict=True) if kind == "best"), key=lambda item: item[1])
    traces = [{"type": "scatter", "mode": "lines", "x": [x for _, x, _ in best], "y": [y[0] for _, _, y in best], "name": "best at each size",
               "line": {"color": COLOURS[0], "dash": "dot", "shape": "hv"}, "hoverinfo": "skip", "showlegend": False}] if best else []  # fmt: skip
    named = {p["key"] for p in spaced(best)}
    colour = colours([p["method"] for p, _, _ in best])
    for method in [*colour, ""]:
        title = family([p["name"] for p in points if p["method"] == method]) or method or OTHERS
        for faded in (False, True):
            chosen = [
                (p, x, y, kind) for (p, x, y), kind in zip(placed, kinds, strict=True)
                if (p["method"] if p["method"] in colour else "") == method and (kind == "beaten") == faded
            ]  # fmt: skip
            if chosen:
                known = any(trace["name"] == title for trace in traces)
                traces.append(_cloud(chosen, title, colour.get(method, (COLOURS[0], "circle")), faded, view, named) | {"showlegend": not known})
    shape = layout(
        VIEWS[view][1],
        QUALITY[metric],
        460,
        yaxis={"type": "log", "dtick": 1},
        xaxis={"type": "log", "dtick": 1} if view == "calibration" else {},
        showlegend=True,
    )
    base = next((x for p in points if p["method"] == "none" and (x := across(p, view)) is not None and view != "calibration"), None)
    if base is not None and placed:
        line = {"type": "line", "x0": base, "x1": base, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": COLOURS[0], "width": 1, "dash": "dash"}}
        note = {"x": base, "y": 1, "yref": "paper", "text": "16-bit", "showarrow": False, "xanchor": "right", "yanchor": "top"}
        shape |= {"shapes": [line], "annotations": [note]}
    return plot(traces, shape, nothing(data))


def nothing(data: dict[str, Any]) -> str:
    """What stands in place of the figure and its words when there is no configuration to draw."""
    if any(p["method"] != "none" for p in data.get("points", [])):
        return "No point has both numbers yet."
    return f"Nothing measured of {data.get('model', 'this model')} yet: choose a grid below and press Run sweep."


def spaced(best: Sequence[tuple[dict[str, Any], float, tuple]]) -> list[dict[str, Any]]:
    """The points of the frontier whose names have room: each far enough in x or in log y from those named before it."""
    if not best:
        return []
    wide = max(x for _, x, _ in best) - min(x for _, x, _ in best) or 1.0
    heights = [math.log10(y[0]) for _, _, y in best]
    high = max(heights) - min(heights) or 1.0
    taken: list[tuple[dict[str, Any], float, float]] = []
    for (point, x, _), height in zip(best, heights, strict=True):
        if all(abs(x - other) / wide > 4 * APART or abs(height - above) / high > APART for _, other, above in taken):
            taken.append((point, x, height))
    return [point for point, _, _ in taken]


def family(names: Sequence[str]) -> str:
    """What the names of one method's configurations begin with, up to its parameters: "QuIP#" of "QuIP# 2-bit" and "QuIP# 2-bit not rotated"."""
    words = zip(*(name.split() for name in names), strict=False)
    shared = itertools.takewhile(lambda at: len(set(at)) == 1 and not at[0].startswith("per-") and not re.fullmatch(r"\d-bit|g\d+", at[0]), words)
    return " ".join(at[0] for at in shared)


def colours(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker), for the methods on the frontier in order."""
    return {m: (COLOURS[1 + i % 4], MARKERS[1 + (i + i // 4) % 4]) for i, m in enumerate(dict.fromkeys(methods))}


def _cloud(chosen: list[tuple], name: str, look: tuple[str, str], faded: bool, view: str, named: set[str]) -> dict[str, Any]:
    colour, marker = look
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers+text", "x": [x for _, x, _, _ in chosen], "y": [y[0] for _, _, y, _ in chosen], "name": name, "legendgroup": name,
        "showlegend": True, "opacity": 0.3 if faded else 1.0, "textposition": "top right", "textfont": {"size": 10},
        "text": [p["name"] if p["key"] in named else "" for p, _, _, kind in chosen],
        "marker": {"color": colour, "size": 9, "symbol": [marker + ("-open" if y[3] else "") for _, _, y, _ in chosen], "line": {"width": 1.5}},
        "ids": [f"report:{p['key']}" for p, *_ in chosen],
        "customdata": [hover(p) for p, *_ in chosen], "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False,
    }  # fmt: skip
    if not faded:
        spans = [span(Measurement("", y[0], low=y[1], high=y[2])) for _, _, y, _ in chosen]
        trace["error_y"] = {
            "type": "data", "symmetric": False, "array": [s[0] for s in spans], "arrayminus": [s[1] for s in spans], "thickness": 1.2, "width": 2,
        }  # fmt: skip
    if view == "latency" and not faded:
        rates = [p["metrics"]["decode_tokens_per_second"] for p, *_ in chosen]
        spread = [(1000 / low - 1000 / v, 1000 / v - 1000 / high) if low and high else (0, 0) for v, low, high in rates]
        trace["error_x"] = {"type": "data", "symmetric": False, "array": [max(0, s[0]) for s in spread], "arrayminus": [max(0, s[1]) for s in spread],
                            "thickness": 1, "width": 0}  # fmt: skip
    return trace


def hover(point: dict[str, Any]) -> str:
    """A point's numbers with their intervals and where they come from."""
    m = point["metrics"]
    parts = [point["name"].replace("<", "‹")]
    for metric, title, unit in (("bits_per_weight", "stored", "bits"), ("kld_mean", "KL", "nats"), ("perplexity_delta", "perplexity", "%")):
        value, low, high = m.get(metric, [None, None, None])
        if finite(value) and metric == "perplexity_delta":
            parts.append(" ".join([title, *(f"({text})" if i else text for i, text in enumerate(change(value, low, high)) if text)]))
        elif finite(value):
            parts.append(f"{title} {value:.4g} {unit}" + (f" ({low:.3g} to {high:.3g})" if finite(low) and finite(high) and low != high else ""))
    if finite(rate := m.get("decode_tokens_per_second", [None])[0]) and rate > 0:
        parts.append(f"{1000 / rate:.2f} ms a token")
    return "<br>".join([*parts, f"{point['origin']}, {point['device']}"])


def _roofline(points: list[dict[str, Any]]) -> Plot:
    placed = [(p, x, y) for p in points if (x := across(p, "roofline")) is not None and (y := across(p, "latency")) is not None]
    if not placed:
        return plot([], layout(VIEWS["roofline"][1], "", 460), NO_LIMIT)
    ends = [min(min(x, y) for _, x, y in placed) / 1.3, max(max(x, y) for _, x, y in placed) * 1.3]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": ends,
            "y": ends,
            "name": "the limit itself",
            "line": {"color": COLOURS[2], "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    named = {p["key"] for p in spaced([(p, math.log10(x), (y,)) for p, x, y in placed])}
    for baseline in (True, False):
        chosen = [(p, x, y) for p, x, y in placed if (p["method"] == "none") == baseline]
        texts = [f"{hover(p)}<br>{y / x:.1f} times its limit of {x:.2f} ms, {p['limit']}" for p, x, y in chosen]
        look = {"color": COLOURS[0 if baseline else 1], "symbol": MARKERS[0 if baseline else 1], "size": 9}
        traces.append({"type": "scatter", "mode": "markers+text", "x": [x for _, x, _ in chosen], "y": [y for _, _, y in chosen], "customdata": texts,
                       "text": [p["name"] if p["key"] in named else "" for p, _, _ in chosen], "textposition": "top center", "textfont": {"size": 10},
                       "ids": [f"report:{p['key']}" for p, *_ in chosen],
                       "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False,
                       "name": "16-bit baseline" if baseline else "quantized", "marker": look})  # fmt: skip
    shape = layout(VIEWS["roofline"][1], "measured, ms a token (log)", 460, xaxis={"type": "log"}, yaxis={"type": "log"}, showlegend=True)
    return plot(traces, shape)


def summary(data: dict[str, Any]) -> str:
    view, metric = data.get("view", "bits"), data.get("quality", "kld_mean")
    points, left, device = comparable(data)
    tail = f" {left} points of another device are left out: times and memory are compared on one device only." if left else ""
    tail += f" Device: {device}." if device else ""
    if view == "roofline":
        ratios = [(across(p, "latency") / x, p["name"]) for p in points if (x := across(p, "roofline")) and across(p, "latency")]
        if not ratios:
            return f"{NO_LIMIT}{tail}"
        (least, near), (most, far) = min(ratios), max(ratios)
        verdict = "so overhead, not bandwidth, sets the speed here" if least > 2 else "so bandwidth matters here"
        rate = "; ".join(dict.fromkeys(p["limit"] for p in points if p.get("limit")))
        silent = sum(across(p, "latency") is not None for p in points) - len(ratios)
        tail = (f" {silent} more do not say the rate of memory that their limit is for and are left out." if silent else "") + tail
        far = f"{least:.1f} ({near}) to {most:.1f} ({far})" if len(ratios) > 1 else f"{least:.1f} ({near})"
        return f"Measured times are {far} times the bandwidth limit ({rate}), {verdict}.{tail}"
    placed = [(p, x, y) for p in points if p["method"] != "none" and (x := across(p, view)) is not None and (y := up(p, metric)) is not None]
    if not placed:
        return nothing(data) + tail
    kinds = standing([(x, *y[:3], p.get("windows", {}).get(metric)) for p, x, y in placed])
    best = [p["name"] for (p, x, _), kind in sorted(zip(placed, kinds, strict=True), key=lambda item: item[0][1]) if kind == "best"]
    shown = ", ".join(best[:8]) + (f" and {len(best) - 8} more" if len(best) > 8 else "")
    return (
        f"Of {len(placed)} configurations {len(best)} are beaten by none ({shown}); {kinds.count('beaten')} are faded: another that is no larger surely "
        f"better; {kinds.count('near')} lie behind by less than that.{tail}"
    )


def looks(data: dict[str, Any]) -> str:
    """What to look for in the view."""
    view = data.get("view", "bits")
    if view == "roofline":
        return "See how far above the dashed line, its own bandwidth limit, each point lies: that much is overhead, which fewer bits do not shorten."
    return f"See the dotted line: {LOOKS[view]}. Faded points are surely beaten; a hollow one is an upper limit."


def kinds(data: dict[str, Any]) -> list[str]:
    """What the points are: recorded, measured, and on the roofline's view also estimated."""
    origins = {p["origin"] == "recorded" for p in data.get("points", [])}
    return [*["recorded"] * (True in origins), *["measured"] * (False in origins), *["estimated"] * (data.get("view") == "roofline")]


def _example(name: str, method: str, bits: float, kld: float) -> dict[str, Any]:
    numbers = {"bits_per_weight": [bits, None, None], "kld_mean": [kld, kld * 0.9, kld * 1.1]}
    return {"key": name, "name": name, "method": method, "origin": "measured now", "device": "a CPU", "metrics": numbers}


CHART = Chart(
    "tradeoffs", "Every configuration over two axes",
    looks({}),
    "There is no best method, only a frontier: at each size one configuration loses least, and which one changes from size to size. Points close together "
    "are often no different at all, so a point is called beaten only when the difference in the same windows of text says so. Bars are 95% intervals of each "
    "alone, across a latency the 20th to 80th percentile of tokens.",
    draw, summary,
    {"points": [_example("RTN 4-bit g64", "rtn", 4.25, 0.04), _example("GPTQ 4-bit g64", "gptq", 4.25, 0.014), _example("RTN 3-bit g64", "rtn", 3.25, 0.25)],
     "view": "bits", "quality": "kld_mean"},
    kinds=kinds, looks=looks,
)  # fmt: skip
