"""Roofline: where the products of a decoded token and its attention stand under what this device was measured to read and multiply; single tokens' times."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, MARKERS, Chart, Plot, layout, plot

ALONE = "This loop ran for this picture alone; how fast it is beside 16 bits stands in Compare, where both ran in turn."


def _line(xs: list[float], ys: list[float], name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "name": name, "line": {"color": colour, "dash": dash, "width": 2}, "hoverinfo": "name"}


def above(op: dict[str, Any], roof: dict[str, Any]) -> str:
    """Why an operation reads faster than the measured roof, "" where it does not."""
    if op["bytes"] / op["seconds"] < 1.005 * roof["read"]:
        return ""
    cache = roof.get("cache", 0)
    if cache and op["bytes"] > cache:
        return "the roof was measured too low"
    if not cache or roof.get("doubt"):
        return "from cache, or the roof was measured too low"
    return f"from cache: {op['bytes'] / 2**20:.1f} MiB fit in {cache / 2**20:.0f}"


def draw(data: dict[str, Any]) -> Plot:
    traces: list[dict] = []
    roof = data.get("roof")
    if roof:
        peak, corner = roof["matmul_16"], roof["matmul_16"] / roof["read"]
        xs = [0.25, corner, max(4 * corner, 1000)]
        traces.append(_line(xs, [roof["read"] * 0.25, peak, peak], "roof (measured)", COLOURS[0]))
        if roof["sheet"]:
            corner = peak / roof["sheet"][0]
            traces.append(_line([0.25, corner], [roof["sheet"][0] * 0.25, peak], f"{roof['sheet'][1]} (estimate)", COLOURS[0], "dash"))
        for i, op in enumerate(data["ops"]):
            share, why = op["bytes"] / op["seconds"] / roof["read"], above(op, roof)
            traces.append(
                {"type": "scatter", "mode": "markers", "x": [op["flops"] / op["bytes"]], "y": [op["flops"] / op["seconds"]],
                 "name": f"{op['op']} ({why.split(':')[0]})" if why else op["op"],
                 "marker": {"color": COLOURS[1 + i % 4], "symbol": MARKERS[i % 5], "size": 12},
                 "hovertemplate": f"{op['op']}, {op['kernel']}<br>{op['calls']} calls of {op['shape'][0]} x {op['shape'][1]}: {op['seconds'] * 1e3:.3f} ms"
                 f"<br>{op['bytes'] / op['seconds'] / 1e9:.1f} GB/s, {share:.0%} of the measured read rate{f'<br>{why}' if why else ''}<extra></extra>"}
            )  # fmt: skip
    axis = {"type": "log", "tickformat": "~s", "dtick": 1}
    return unmeasured(plot(traces, layout("FLOP per byte read (log)", "FLOP/s (log)", height=380, xaxis=axis, yaxis=axis)), "What limits it")


def unmeasured(drawn: Plot, button: str) -> Plot:
    """A plot without data names the button that fills it."""
    if not drawn["data"]:
        drawn["layout"]["annotations"][0]["text"] = f"Not measured yet: press “{button}”."
        drawn["layout"]["height"] = 220
    return drawn


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "Not measured yet."
    roof = data["roof"]
    parts = [f"{op['op']} {op['bytes'] / op['seconds'] / roof['read']:.0%}" for op in data["ops"]]
    reach = f" Of the measured read rate of memory, {roof['read'] / 1e9:.1f} GB/s: {', '.join(parts)}." if parts else ""
    higher = [f"{op['op']} ({why})" for op in data["ops"] if (why := above(op, roof))]
    reach += f" More than 100%: {', '.join(higher)}." if higher else ""
    return f"**{data['label']} on {data['model']}, {data['loop']}.** {data['sentence']}{reach} {ALONE}"


def draw_times(data: dict[str, Any]) -> Plot:
    traces, shape = [], layout("ms per token", "tokens", showlegend=False)
    if data:
        step, low = data["step"], 1e3 * min(data["step"]["latencies"])
        end = max(1.5e3 * step["p95"], 1.1 * low)
        bins = {"start": 0.95 * low, "end": 1e3 * max(step["latencies"]) + end, "size": (end - 0.95 * low) / 30}
        traces.append({"type": "histogram", "x": [1e3 * s for s in step["latencies"]], "xbins": bins, "marker": {"color": COLOURS[1]}, "name": "tokens"})
        shape["xaxis"] |= {"range": [0.95 * low, end]}
        marks = [(1e3 * step["p50"], "p50"), (1e3 * step["p95"], "p95")]
        shape["shapes"] = [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": COLOURS[2], "dash": "dash", "width": 2}} for x, _ in marks
        ]
        shape["annotations"] = [
            {"x": x, "y": y, "yref": "paper", "text": f"{name} {x:.2f} ms", "showarrow": False, "xanchor": "left", "xshift": 4}
            for (x, name), y in zip(marks, (1.0, 0.88), strict=True)
        ]
    return unmeasured(plot(traces, shape), "What limits it")


def summary_times(data: dict[str, Any]) -> str:
    if not data:
        return "Not measured yet."
    step = data["step"]
    beyond = sum(seconds > 1.5 * step["p95"] for seconds in step["latencies"])
    rest = f" {beyond} took longer than is drawn, the longest {1e3 * max(step['latencies']):.2f} ms." if beyond else ""
    return f"Half of {len(step['latencies'])} single tokens took at most {1e3 * step['p50']:.2f} ms, 95% at most {1e3 * step['p95']:.2f} ms.{rest} {ALONE}"


EXAMPLE = {
    "label": "RTN 4-bit g64", "model": "demo", "loop": "own loop", "why": "", "limit": "bandwidth", "sentence": "Bandwidth: an example.",
    "roof": {"read": 2e10, "copy": 2.4e10, "matmul_16": 3e11, "matmul_8": None, "sheet": [3.35e12, "data sheet of H100"]},
    "ops": [{"op": "down", "kernel": "int4_matmul (cpu)", "shape": [384, 1024], "calls": 6, "seconds": 1e-4, "bytes": 1344000, "flops": 4718592}],
    "step": {"latencies": [0.001, 0.0011, 0.002], "p50": 0.0011, "p95": 0.002, "bytes": 8464384},
}  # fmt: skip
ROOFLINE = Chart(
    "roofline", "What limits it here", "See how close each product comes to the roof: on the slope memory bandwidth limits it, on the flat part arithmetic.",
    "Decoding one sequence multiplies each weight once, so its operations lie far left, where the time is that of reading the weights: fewer bits move a "
    "point to the right along the slope and shorten the time in proportion. A point far below the roof waits for something else: the start of a kernel, "
    "unpacking codes, too little work to keep all cores busy. The roof is measured on this device in the same run.",
    draw, summary, EXAMPLE, kinds=lambda data: ("measured", "estimated"),
)  # fmt: skip
TIMES = Chart(
    "token_times", "How long single tokens take", "See whether the times lie together: a long tail to the right is other work on the machine, not the model.",
    "An average hides what a reader of streamed text feels. The median tells what is usual, the 95th percentile what one in twenty tokens exceeds. "
    "Every token here is timed on its own, on a GPU by events without waiting in between; the first run warms up and is not counted.",
    draw_times, summary_times, EXAMPLE,
)  # fmt: skip
