"""Trade-offs: every configuration of a sweep or survey over two of the axes people trade; the best of them joined, the beaten ones faded.

Times compare as ratios to the 16-bit loop that was timed in turn with them: two runs apart differ by the machine's pace of the minute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from explorer.figures import COLOURS, FLOOR, Chart, Plot, finite, layout, limits, plot, span
from explorer.figures.labels import brief, spaced
from explorer.findings import busy, counted, read_late, timed_on
from explorer.paired import ONE_BY_ONE, Place, standing, windows_of
from explorer.records import Measurement, Report, change
from explorer.repeats import Spread, between, spread, work

VIEWS = {
    "bits": ("bits_per_weight", "stored bits per weight", 1.0), "memory": ("weight_bytes", "all weights in memory, MB", 1e-6),
    "latency": ("decode_speedup", "time per token, 16 bits = 1", 1.0), "calibration": ("quantize_seconds", "time to quantize, s (log)", 1.0),
    "roofline": ("decode_limit", "bandwidth limit, ms a token (estimated, log)", 1000.0),
    "time": ("decode_tokens_per_second", "decoding, ms a token, each timed on its own", 1000.0),
}  # fmt: skip
INVERTED = ("latency", "roofline", "time")  # stored as a rate, shown as a time
BY_DEVICE = ("latency", "calibration", "roofline", "memory", "time")
QUALITY = {"kld_mean": "KL divergence, nats (log)", "perplexity_delta": "perplexity increase, % (log)"}
OF_THE_LOOP = ("latency", "time")  # views of what a busy machine disturbs
FADED, FAR = ("beaten", "disturbed"), 0.35  # standings that are faded; how far beyond the points, in shares of their span, 16 bits are only named
OTHERS, FLOATS = "other methods", "FP8, MX, NVFP4, FP4"
METHODS = {
    "rtn": ("RTN", COLOURS[1], "square"), "gptq": ("GPTQ", COLOURS[2], "diamond"), "awq": ("AWQ", COLOURS[3], "triangle-up"),
    "hqq": ("HQQ", COLOURS[4], "x"), "nf4": ("NF4", COLOURS[1], "triangle-down"), "kquant": ("GGUF", COLOURS[2], "pentagon"),
    **dict.fromkeys(("fp8", "mxfp", "nvfp4", "fp4"), (FLOATS, COLOURS[3], "star")),
}  # fmt: skip
APART_IN_TIME = (
    "No point says how fast it is beside a 16-bit loop of its own run, so these times are of different minutes of the machine and nothing is called beaten; "
    "run the sweep again to compare them."
)
LOOKS = {
    "bits": "nothing measured is better at that size or smaller", "memory": "nothing measured is better in as little memory",
    "latency": "nothing measured is better and as fast", "calibration": "nothing measured is better after as short a time",
}  # fmt: skip
NO_WORSE = {"bits": "no larger", "memory": "no larger", "latency": "no slower", "calibration": "no slower to make"}


def point_of(report: Report, key: str, origin: str) -> dict[str, Any]:
    """One configuration as plain data: key, name, method, origin ("recorded", "measured now", ...), device, the measurements by metric, what its
    limit is from, windows: the window means behind each metric of quality, by which points are paired, work: what is equal for equal times, disturbed and
    late: that other work disturbed its times, or the reading of memory.
    """
    found = {
        m.metric: [m.value if finite(m.value) else None, m.low if finite(m.low) else None, m.high if finite(m.high) else None]
        for m in report.measurements if not m.layer and isinstance(m.value, int | float)
    }  # fmt: skip
    wanted = {name: found[name] for name in {*QUALITY, *(metric for metric, _, _ in VIEWS.values()), "top1_agreement"} if name in found}
    spec = report.experiment.spec
    return {"key": key, "name": report.name, "method": "none" if spec.is_baseline else spec.method, "origin": origin,
            "device": report.provenance.get("device", ""), "metrics": wanted,
            "windows": {metric: windows_of(report, metric) for metric in QUALITY}, "work": work(report),
            "disturbed": busy(report), "late": read_late(report),
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


def repeats(points: Sequence[dict[str, Any]]) -> Spread | None:
    """How far the speed-ups of the same work differ among the points; None where too few repeat it. Disturbed ones do not count."""
    calm = (p for p in points if not p.get("disturbed"))
    return spread((p.get("work", ""), found[0]) for p in calm if finite((found := p["metrics"].get("decode_speedup", [None]))[0]))


def aside(point: dict[str, Any], view: str, apart: Spread | None = None) -> Place | None:
    """Where a point stands on the view's x axis with its interval, of a speed-up that from run to run: points of the same work share the mean of their
    speed-ups where `apart` tells how far runs differ. A disturbed one keeps its own interval over rounds. Sizes are exact.
    """
    x = across(point, view)
    if x is None:
        return None
    _, low, high = point["metrics"].get(VIEWS[view][0], [None, None, None])
    if view != "latency" or not (finite(low) and finite(high) and low > 0):
        return x, x, x
    if point.get("disturbed"):
        return x, 1 / high, 1 / low
    if apart is None or point.get("work", "") not in apart.means:
        factor = apart.factor() if apart else between()
        return x, min(1 / high, x / factor), max(1 / low, x * factor)
    mean, runs = apart.means[point["work"]]
    return 1 / mean, 1 / mean / apart.factor(runs), apart.factor(runs) / mean


def comparable(data: dict[str, Any]) -> tuple[list[dict[str, Any]], int, str]:
    """(points that may share a figure, how many were left out for their device, the device): times of two devices are never put side by side."""
    points, view = data.get("points", []), data.get("view", "bits")
    if view not in BY_DEVICE or not points:
        return list(points), 0, ""
    device = timed_on([(p["device"], p["origin"] == "recorded") for p in points])
    kept = [p for p in points if p["device"] == device]
    return kept, len(points) - len(kept), device


def set_out(data: dict[str, Any]) -> tuple[str, list[tuple[dict[str, Any], Place, tuple, str]]]:
    """(view, [(point, x, y, standing)]) of what has both numbers; the view "time", in which nothing is judged, where no point says a speed-up. What a busy
    machine disturbed stands as "disturbed" where times are shown, and takes no part in the judgement of others.
    """
    view, points = data.get("view", "bits"), [p for p in comparable(data)[0] if p["method"] != "none"]
    if view == "latency" and not any(p["metrics"].get("decode_speedup") for p in points):
        view = "time"
    metric = data.get("quality", "kld_mean")
    apart = repeats(points)
    placed = [(p, x, y) for p in points if (x := aside(p, view, apart)) is not None and (y := up(p, metric)) is not None]
    out = [bool(view in OF_THE_LOOP and p.get("disturbed")) for p, _, _ in placed]
    marks = [(x[0], y[:3], p.get("windows", {}).get(metric)) for (p, x, y), late in zip(placed, out, strict=True) if not late]
    kinds = iter(["near"] * len(marks) if view == "time" else standing(marks))
    return view, [(*each, "disturbed" if late else next(kinds)) for each, late in zip(placed, out, strict=True)]


def draw(data: dict[str, Any]) -> Plot:
    """data: points as `point_of` gives them, view: one of VIEWS, quality: one of QUALITY; model: whose points they are."""
    points, _, _ = comparable(data)
    if data.get("view") == "roofline":
        return limits.draw(timed(points), VIEWS["roofline"][1])
    view, placed = set_out(data)
    best = sorted(((p, x[0], y) for p, x, y, kind in placed if kind == "best"), key=lambda item: item[1])
    traces = [{"type": "scatter", "mode": "lines", "x": [x for _, x, _ in best], "y": [y[0] for _, _, y in best], "name": "best at each size",
               "line": {"color": COLOURS[0], "dash": "dot", "shape": "hv"}, "hoverinfo": "skip", "showlegend": False}] if best else []  # fmt: skip
    scale = math.log10 if view == "calibration" else float
    ends = [scale(x[0]) for _, x, *_ in placed]
    named = spaced([(p["key"], brief(p), scale(x), math.log10(y[0])) for p, x, y in best], ends, [math.log10(y[0]) for _, _, y, _ in placed])
    for title, colour, marker in dict.fromkeys([*METHODS.values(), (OTHERS, COLOURS[0], "circle")]):
        for faded in (False, True):
            chosen = [each for each in placed if METHODS.get(each[0]["method"], (OTHERS,))[0] == title and (each[3] in FADED) == faded]
            if chosen:
                known = any(trace["name"] == title for trace in traces)
                traces.append(_cloud(chosen, title, (colour, marker), faded, named) | {"showlegend": not known})
    across_axis = {"type": "log", "dtick": 1} if view == "calibration" else {}
    shape = layout(VIEWS[view][1], QUALITY[data.get("quality", "kld_mean")], 460, yaxis={"type": "log", "dtick": 1}, xaxis=across_axis, showlegend=True)
    base = 1.0 if view == "latency" else next((x for p in points if p["method"] == "none" and (x := across(p, view)) is not None), None)
    lined = base is not None and placed and view not in ("calibration", "time")
    return plot(traces, shape | (beside(base, ends, view == "latency") if lined else {}), nothing(data))


def beside(base: float, xs: Sequence[float], always: bool) -> Plot:
    """The line of 16 bits as parts of a layout; unless always, far beyond the points' xs only a note that says where it would stand: they keep the width."""
    note = {"x": base, "y": 1, "yref": "paper", "text": "16-bit", "showarrow": False, "xanchor": "right", "yanchor": "top"}
    if not always and base > max(xs) + FAR * (max(xs) - min(xs) or max(xs)):
        return {"annotations": [note | {"x": 1, "xref": "paper", "text": f"16-bit: at {base:.4g} →"}]}
    line = {"type": "line", "x0": base, "x1": base, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": COLOURS[0], "width": 1, "dash": "dash"}}
    return {"shapes": [line], "annotations": [note]}


def timed(points: Sequence[dict[str, Any]]) -> list[limits.Timed]:
    """The points that say both a time and its limit."""
    found = ((p, across(p, "roofline"), across(p, "time")) for p in points)
    return [(p, x, y, hover(p)) for p, x, y in found if x is not None and y is not None]


def nothing(data: dict[str, Any]) -> str:
    """What stands in place of the figure and its words when there is no configuration to draw."""
    if any(p["method"] != "none" for p in data.get("points", [])):
        return "No point has both numbers yet."
    return f"Nothing measured of {data.get('model', 'this model')} yet: choose a grid below and press Run sweep."


def _cloud(chosen: list[tuple], name: str, look: tuple[str, str], faded: bool, named: dict[str, str]) -> dict[str, Any]:
    colour, marker = look
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers+text", "x": [x[0] for _, x, *_ in chosen], "y": [y[0] for _, _, y, _ in chosen], "name": name, "legendgroup": name,
        "showlegend": True, "opacity": 0.3 if faded else 1.0, "textfont": {"size": 10},
        "textposition": [named.get(p["key"], "top right") for p, *_ in chosen],
        "text": [brief(p) if p["key"] in named else "" for p, *_ in chosen],
        "marker": {"color": colour, "size": 9, "symbol": [marker + ("-open" if y[3] else "") for _, _, y, _ in chosen], "line": {"width": 1.5}},
        "ids": [f"report:{p['key']}" for p, *_ in chosen],
        "customdata": [hover(p) for p, *_ in chosen], "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False,
    }  # fmt: skip
    if not faded:
        for axis, ends in (("error_x", [x for _, x, *_ in chosen]), ("error_y", [y for _, _, y, _ in chosen])):
            spans = [span(Measurement("", at[0], low=at[1], high=at[2])) for at in ends]
            bars = {"array": [s[0] for s in spans], "arrayminus": [s[1] for s in spans], "thickness": 1.2, "width": 2}
            trace |= {axis: {"type": "data", "symmetric": False, **bars}} if any(map(any, spans)) else {}
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
    parts += [f"{text} a token"] if (text := milliseconds(point)) else []
    if all(map(finite, times := m.get("decode_speedup", [None]))):
        parts.append("{:.2f} times as fast as 16 bits ({:.2f} to {:.2f} within its run), timed in turn".format(*times))
    parts += [point["disturbed"]] if point.get("disturbed") else []
    return "<br>".join([*parts, f"{point['origin']}, {point['device']}"])


def milliseconds(point: dict[str, Any]) -> str:
    """Time of the median token with the 20th and 80th percentile of single tokens, "" where it was not measured."""
    rate, low, high = point["metrics"].get("decode_tokens_per_second", [None, None, None])
    if not finite(rate) or rate <= 0:
        return ""
    return f"{1000 / rate:.2f} ms" + (f" ({1000 / high:.2f} to {1000 / low:.2f})" if finite(low) and finite(high) and low > 0 else "")


def summary(data: dict[str, Any]) -> str:
    points, left, device = comparable(data)
    tail = f" {left} points of another device are left out: times and memory are compared on one device only." if left else ""
    tail += f" Device: {device}." if device else ""
    if data.get("view") == "roofline":
        found = timed(points)
        return limits.summary(found, sum(across(p, "time") is not None for p in points) - len(found)) + tail
    view, placed = set_out(data)
    if not placed:
        return nothing(data) + tail
    late = [p["name"] for p, *_, kind in placed if kind == "disturbed"]
    tail = (f" Timed on a busy machine, so faded and judged neither way: {len(late)} ({', '.join(late[:4])})." if late else "") + tail
    if view == "time":
        return f"{len(placed)} configurations. {APART_IN_TIME}{tail}"
    lacking = sum(p["method"] != "none" for p in points) - len(placed)
    tail = (f" {lacking} more have no speed-up yet and are left out." if lacking and view == "latency" else "") + tail
    if view == "latency" and (apart := repeats(points)):
        tail = f" Points of the same work stand at the mean of their runs. {apart.told()}{tail}"
    best = [p["name"] for p, _, _, kind in sorted(placed, key=lambda item: item[1][0]) if kind == "best"]
    shown = ", ".join(best[:8]) + (f" and {len(best) - 8} more" if len(best) > 8 else "")
    beaten, near = (sum(kind == wanted for *_, kind in placed) for wanted in ("beaten", "near"))
    return (
        f"Of {len(placed) - len(late)} configurations {len(best)} are beaten by none ({shown}); {beaten} are faded: another that is {NO_WORSE[view]} is "
        f"measurably better; {near} lie behind by less than that. {ONE_BY_ONE}{tail}"
    )


def looks(data: dict[str, Any]) -> str:
    """What to look for in the view."""
    view = data.get("view", "bits")
    if view == "roofline":
        return limits.LOOK
    if view == "time" or (data.get("points") and set_out(data)[0] == "time"):
        return "See quality beside time, but compare no two times: each is of its own minute."
    late = view in OF_THE_LOOP and any(p.get("disturbed") for p in data.get("points", []))
    faded = f"Faded points are measurably beaten{' or were timed on a busy machine' if late else ''}"
    hollow = f"{faded}; a hollow one is an upper limit. Colours and markers are of methods here. A click on a method in the legend hides it, two show it alone."
    return f"See the dotted line: {LOOKS[view]}. {hollow}"


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
    "alone, of times from run to run. Time is relative to the 16-bit loop, which was timed in turn with each in the same run: an hour later the same loop may "
    "take half as long again.",
    draw, summary,
    {"points": [_example("RTN 4-bit g64", "rtn", 4.25, 0.04), _example("GPTQ 4-bit g64", "gptq", 4.25, 0.014), _example("RTN 3-bit g64", "rtn", 3.25, 0.25)],
     "view": "bits", "quality": "kld_mean"},
    kinds=kinds, looks=looks,
)  # fmt: skip
