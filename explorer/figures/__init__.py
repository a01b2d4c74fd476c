"""Figure: a pure function of reports that gives a Plotly figure as plain data. One file a figure; the theme is here. No torch, no gradio."""

from __future__ import annotations

import importlib
import math
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from explorer.records import Report

# Okabe-Ito colours that keep 3:1 on white and on a dark card; a dash, marker or pattern always goes with them as a second cue.
COLOURS = ("#7f7f7f", "#0a7abf", "#d55e00", "#009e73", "#b4659a")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
PATTERNS = ("", "/", "\\", "x", ".")
GRID = "rgba(128,128,128,0.28)"
TEXT = "#808080"
WAITING = "Appears when the engine has started and a layer is chosen."
FLOOR = 1e-3  # where a measured decrease is drawn, which has no place on a log axis

Plot = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """draw(reports, layer) -> Plotly JSON; `see` is one sentence on what to look for, `why` a short lesson, `summary` says the same in words.

    needs: metrics without which a report has nothing to show. tab: where on the page it stands. by_layer: whether it shows one chosen layer.
    wide: whether it takes a whole row.
    """

    name: str
    title: str
    see: str
    why: str
    needs: tuple[str, ...]
    draw: Callable[[Sequence[Report], str], Plot]
    summary: Callable[[Sequence[Report], str], str]
    by_layer: bool = False
    wide: bool = False
    order: int = 0
    tab: str = "compare"


@dataclass(frozen=True)
class Chart:
    """A figure of data that is no report: a task's answer or plain arithmetic. draw(data) -> Plotly JSON, summary(data) the same in words; both
    take an empty dict before there is anything. example: data as small as it gets, for tests. kinds(data): how its numbers came to be, of
    `chips.KINDS`. looks(data): in place of `see` where what to look for depends on the data.
    """

    name: str
    title: str
    see: str
    why: str
    draw: Callable[[dict[str, Any]], Plot]
    summary: Callable[[dict[str, Any]], str]
    example: dict[str, Any]
    kinds: Callable[[dict[str, Any]], Sequence[str]] = lambda data: ("measured",)
    looks: Callable[[dict[str, Any]], str] | None = None


def _found(kind: type) -> list[Any]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return [item for module in modules for item in vars(module).values() if isinstance(item, kind)]


@cache
def figures() -> dict[str, Figure]:
    """Every Figure in this folder, in reading order."""
    return {figure.name: figure for figure in sorted(_found(Figure), key=lambda f: f.order)}


@cache
def charts() -> dict[str, Chart]:
    """Every Chart in this folder, by name."""
    return {chart.name: chart for chart in _found(Chart)}


def layout(x: str, y: str, height: int = 340, **more: Any) -> Plot:
    """The house layout: transparent, readable on light and dark, legend above. x and y are axis titles with units."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    base = {
        "height": height, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": TEXT, "size": 13},
        "margin": {"l": 60, "r": 16, "t": 12, "b": 48}, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": axis | {"title": {"text": x}}, "yaxis": axis | {"title": {"text": y}}, "hovermode": "closest",
    }  # fmt: skip
    for key, value in more.items():
        base[key] = base[key] | value if isinstance(base.get(key), dict) else value
    for key, axis in base.items():
        if key.startswith(("xaxis", "yaxis")) and axis.get("type") == "log":
            # A whole number at every tick, where Plotly would write the first digit alone between decades; so there is room for few.
            axis.setdefault("tickformat", ",~g")
            axis.setdefault("nticks", 4)
    return base


def plot(data: list[dict], shape: Plot, nothing: str = "Nothing measured yet: press Run.") -> Plot:
    """A complete figure; with nothing to draw, the sentence `nothing` in its place."""
    if not data:
        note = {"text": "<br>".join(textwrap.wrap(nothing, 40)), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        shape = shape | {"annotations": [note], "xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return {"data": data, "layout": shape}


def places(reports: Iterable[Report]) -> list[int]:
    """Which colour, dash, marker and pattern each report has in all figures: its place on a page, where its provenance says one, else its position."""
    return [report.provenance.get("place", i) for i, report in enumerate(reports)]


def with_metrics(reports: Sequence[Report], *names: str, layer: str = "") -> list[tuple[int, Report]]:
    """(place, report) of the reports that carry all of these metrics (for this layer)."""
    return [(i, r) for i, r in zip(places(reports), reports, strict=True) if all(r.find(name, layer) for name in names)]


def short_layer(name: str) -> str:
    """A layer's name without what all names share: "model.layers.3.self_attn.q_proj" becomes "3 q_proj"."""
    parts = name.split(".")
    return " ".join([*(part for part in parts[:-1] if part.isdigit()), parts[-1]])


def picks(layers: Iterable[str]) -> list[str]:
    """Ids of marks that choose their layer in all tabs when they are clicked; for a heat map, rows of them in `meta` (see assets/page.js)."""
    return [f"layer:{name}" for name in layers]


def finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def span(measurement: Any) -> tuple[float, float]:
    """(up, down) error bar lengths of a measurement; 0 where it has no finite interval."""
    if not (finite(measurement.low) and finite(measurement.high) and finite(measurement.value)):
        return 0.0, 0.0
    return max(0.0, measurement.high - measurement.value), max(0.0, measurement.value - measurement.low)


def against_bits(reports: Sequence[Report], metric: str, title: str) -> Plot:
    """A metric that is 0 for the baseline, against stored bits, on a log axis; what cannot be told from zero is drawn as its upper limit, hollow."""
    data = []
    for i, report in with_metrics(reports, metric, "bits_per_weight"):
        found = report.find(metric)
        if not finite(found.value) or report.experiment.spec.is_baseline:
            continue
        limit = found.value <= 0 or (finite(found.low) and found.low <= 0)
        height = max(found.value, found.high if finite(found.high) else FLOOR, FLOOR) if limit else found.value
        up, down = (0.0, 0.0) if limit else span(found)
        interval = f", 95% interval {found.low:.4g} to {found.high:.4g}" if finite(found.low) else ""
        data.append(
            {"type": "scatter", "mode": "markers", "x": [report.value("bits_per_weight")], "y": [height], "name": report.name,
             "marker": {"color": COLOURS[i % 5], "symbol": MARKERS[i % 5] + ("-open" if limit else ""), "size": 11, "line": {"width": 2 if limit else 0}},
             "hovertemplate": f"{found.value:.4g} {found.unit}{interval}, %{{x:.3f}} bits",
             "error_y": {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.5}}
        )  # fmt: skip
    ends = [end for one in data for end in (one["y"][0] + one["error_y"]["array"][0], one["y"][0] - one["error_y"]["arrayminus"][0]) if end > 0]
    decades = math.floor(math.log10(max(ends))) - math.ceil(math.log10(min(ends))) if ends else 0
    ticks = {"dtick": 1} if decades > 0 else {}  # at powers of ten, where there are two of them
    return plot(data, layout("stored bits per weight", title, yaxis={"type": "log", **ticks}, showlegend=True))
