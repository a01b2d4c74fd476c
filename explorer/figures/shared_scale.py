"""Shared scale: the span of each row (or group), and which points of the grid it gets lie where its weights are."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, TEXT, WAITING, Chart, Plot, finite, layout, plot

FINE = 63  # points of a grid beyond which those out of reach are not drawn
SLOT = 0.3  # of the distance between two lines
SCALES = {"tensor": "one scale for the tensor", "channel": "one scale for the row", "group": "one scale for the group"}


def whole(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that have a finite span."""
    return [line for line in data.get("lines", []) if finite(line["low"]) and finite(line["high"])]


def points(grid: dict[str, Any], available: int) -> tuple[list[float], list[float]]:
    """(values of the codes in reach, of the others)."""
    start = 0 if available % 2 == 0 else 1  # symmetric grids do without the lowest code
    codes, reach = range(start, start + available), range(grid["first"], grid["first"] + grid["codes"])
    at = {code: float(f"{(code - grid['zero']) * grid['scale']:.4g}") for code in codes}
    return [at[c] for c in codes if c in reach], [at[c] for c in codes if c not in reach] if available <= FINE else []


def lost(grid: dict[str, Any]) -> str:
    """A relative error in percent."""
    return f"{100 * grid['error']:.{0 if grid['error'] >= 0.095 else 1}f}%" if finite(grid["error"]) else "none"


def draw(data: dict[str, Any]) -> Plot:
    lines, lanes = whole(data), data.get("lanes", [])
    slots = 1 + len(lanes)
    shape = layout("weight", "", max(340, 120 + 13 * slots * len(lines)), showlegend=True, margin={"r": 96})
    if not lines:
        return plot([], shape, WAITING)
    reached = [value for line in lines for grid in line["grids"] for value in points(grid, data["available"])[0]]
    low, high = min(*reached, *(line["low"] for line in lines)), max(*reached, *(line["high"] for line in lines))
    room = 0.02 * (high - low)
    traces, notes = _spans(lines, slots), []
    for lane, name in enumerate(lanes):
        tone, place = COLOURS[2 if lane == 0 else 1], (lane + 1 - (slots - 1) / 2) * SLOT
        near: tuple[list[float], list[float]] = ([], [])
        far: tuple[list[float], list[float]] = ([], [])
        for i, line in enumerate(lines):
            grid = line["grids"][lane]
            for kept, values in zip((near, far), points(grid, data["available"]), strict=True):
                seen = [v for v in values if low <= v <= high]
                kept[0].extend(seen)
                kept[1].extend([round(i + place, 3)] * len(seen))
            codes = f"{grid['codes']} code{'s' if grid['codes'] != 1 else ' '}"
            notes.append(
                {"text": f"{codes} · {lost(grid)}", "xref": "paper", "x": 1.01, "xanchor": "left", "y": i + place, "showarrow": False,
                 "font": {"size": 10.5, "color": TEXT}}
            )  # fmt: skip
        mark = {"symbol": "line-ns", "size": 8, "color": tone, "line": {"width": 2.4, "color": tone}}
        traces += [
            {"type": "scatter", "mode": "markers", "x": near[0], "y": near[1], "name": f"{SCALES[name]}: points in reach", "marker": mark,
             "hovertemplate": f"%{{x:.4g}}<extra>{SCALES[name]}</extra>"},
            {"type": "scatter", "mode": "markers", "x": far[0], "y": far[1], "showlegend": False, "hoverinfo": "skip", "opacity": 0.22, "marker": mark},
        ]  # fmt: skip
    shape["xaxis"] |= {"range": [low - room, high + room], "nticks": 6}
    shape["yaxis"] |= {"range": [len(lines) - 0.4, -0.6], "tickvals": list(range(len(lines))), "ticktext": [line["name"] for line in lines],
                       "showgrid": False, "zeroline": False, "tickfont": {"size": 11}}  # fmt: skip
    return plot(traces, shape | {"annotations": notes})


def _spans(lines: list[dict[str, Any]], slots: int) -> list[dict[str, Any]]:
    """Of each line its values from least to most, thin, and the middle nine tenths, thick."""
    traces = []
    for name, ends, width in (("least to most", ("low", "high"), 1.5), ("5% to 95%", ("p5", "p95"), 7)):
        x: list[float | None] = []
        y: list[float | None] = []
        for i, line in enumerate(lines):
            x += [line[ends[0]], line[ends[1]], None]
            y += [i - (slots - 1) / 2 * SLOT] * 2 + [None]
        traces.append(
            {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": f"its weights, {name}", "line": {"color": COLOURS[0], "width": width},
             "hovertemplate": "%{x:.4g}<extra></extra>"}
        )  # fmt: skip
    return traces


def summary(data: dict[str, Any]) -> str:
    lines = whole(data)
    if not lines:
        return "No row is drawn yet."
    told = []
    for lane, name in enumerate(data["lanes"]):
        ends = [f"{which} ({line['name']}) reaches {line['grids'][lane]['codes']} of {data['available']} codes and is off by {lost(line['grids'][lane])}"
                for which, line in (("the narrowest", lines[0]), ("the widest", lines[-1]))]  # fmt: skip
        told.append(f"With {SCALES[name]} {ends[0]}, {ends[1]}.")
    kind = "rows, " if data["row"] is None else f"groups of {data['group_size']} of row {data['row']}, the one with the widest range, "
    return f"{' '.join(told)} {data['bits']}-bit RTN; {len(lines)} of {data['of']:,} {kind}by range; the error is relative, |w' - w| / |w|."


CHART = Chart(
    "shared_scale", "Whose scale is it?",
    "See a narrow row under the scale of the whole tensor: only the few grid points in the middle lie where its weights are. With a scale of its own it has "
    "nearly all of them.",
    "One scale for the tensor must reach as far as its largest weight, wherever that is. The step is then the same for every row, so a row with a quarter of "
    "the range gets about a quarter of the points, and all of its weights fall on those: same bits, fewer codes in use, a larger error. A scale for each "
    "row makes the step follow the row, for 16 bits a row. Within a row the same happens again, which is what groups are for.",
    draw, summary,
    {"lanes": ["tensor", "channel"], "bits": 2, "available": 3, "of": 384, "row": None, "group_size": 64, "layer": "layers.0.mlp.up_proj",
     "lines": [{"name": "row 7", "low": -0.1, "high": 0.1, "p5": -0.05, "p95": 0.06,
                "grids": [{"scale": 0.4, "zero": 2, "first": 2, "codes": 1, "error": 1.0}, {"scale": 0.1, "zero": 2, "first": 1, "codes": 3, "error": None}]},
               {"name": "row 2", "low": None, "high": 0.4, "p5": None, "p95": None,
                "grids": [{"scale": 0.4, "zero": 2, "first": 1, "codes": 3, "error": 0.3}] * 2}]},
)  # fmt: skip
