"""Alpha: how the error of one layer's int8 product depends on how much difficulty SmoothQuant moves into the weights."""

from __future__ import annotations

from typing import Any

from explorer.figures import COLOURS, DASHES, MARKERS, WAITING, Chart, Plot, layout, plot

KINDS = (("token", "inputs per token"), ("tensor", "inputs per tensor"))


def draw(data: dict[str, Any]) -> Plot:
    shape = layout("alpha", "relative output error, %", 340, yaxis={"rangemode": "tozero"}, showlegend=True)
    traces = []
    for i, (kind, name) in enumerate(KINDS if data else ()):
        line = {"color": COLOURS[1 + i], "dash": DASHES[i], "width": 1.8}
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "x": data["alphas"], "y": [100 * v for v in data[kind]], "name": f"SmoothQuant, {name}", "line": line,
             "marker": {"symbol": MARKERS[i]}, "hovertemplate": "alpha %{x:.1f}: %{y:.3g}%"}
        )  # fmt: skip
        if data["plain"][kind] < 3 * max(data[kind]):
            plain = {"color": COLOURS[1 + i], "dash": "dot", "width": 1}
            level = [100 * data["plain"][kind]] * 2
            traces.append(
                {"type": "scatter", "mode": "lines", "x": [0, 1], "y": level, "name": f"without, {name}", "line": plain, "hovertemplate": "%{y:.3g}%"}
            )
    return plot(traces, shape, WAITING)


def summary(data: dict[str, Any]) -> str:
    if not data:
        return "No curve is drawn yet."
    parts = []
    for kind, name in KINDS:
        best = min(range(len(data[kind])), key=lambda i: data[kind][i])
        parts.append(
            f"{name[0].upper()}{name[1:]}: best {100 * data[kind][best]:.3g}% at alpha {data['alphas'][best]:.1f}, {100 * data['plain'][kind]:.3g}% "
            f"without SmoothQuant"
        )
    gain = min(data["token"]) / max(data["plain"]["token"], 1e-30)
    little = " There is little to smooth in this layer: plant outliers to see what alpha is for." if gain > 0.7 else ""
    return f"{'; '.join(parts)}. {data['tokens']} tokens, {data['rows']} of {data['of']:,} rows.{little}"


CHART = Chart(
    "alpha", "How much to move: alpha",
    "See the valley between alpha 0 (all difficulty stays in the inputs) and 1 (all of it in the weights).",
    "At alpha 0 the scales make the weights' columns equal; at 1 the inputs' channels become equal and the weights carry all of the spread. "
    "In between neither side stands out. Planted outliers leave the curve where it is: SmoothQuant undoes a scaling of channels exactly, whatever alpha is.",
    draw, summary,
    {"alphas": [0.0, 0.5, 1.0], "token": [0.02, 0.01, 0.015], "tensor": [0.03, 0.012, 0.02], "plain": {"token": 0.02, "tensor": 0.5}, "rows": 128, "of": 384,
     "tokens": 128},
)  # fmt: skip
