"""Weights: the histogram and its grid, where the error of a configuration sits, its scales, and a microscope on one group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from explorer.figures import charts
from explorer.figures.projections import table_of
from explorer.link import WHOLE
from explorer.records import Report
from explorer.ui.asking import LIVE, after_paint, asked, configuration, model_of
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, chart_values, report_figures
from explorer.ui.session import keys_of, usual
from explorer.ui.status import status
from explorer.ui.tab import QUIET, Shell, Tab, View, settings
from explorer.ui.tabs.weights.lens import Lens

NAMES = ("error_map", "scales")


def build(shell: Shell) -> View:
    figures = report_figures("weights")
    told = gr.Textbox("", visible="hidden", elem_id="weights-subject")
    subject = after_paint(told)
    line = gr.HTML("", elem_id="weights-status", padding=False)
    Lens(shell, subject, line)
    gr.HTML("<h2 class='figure'>One configuration on this layer</h2>")
    with gr.Row(elem_classes=["ms-choice"]):
        configuration = gr.Dropdown(
            [], label="Configuration", info="Of the compared ones: whose error, scales and matrices are shown.", filterable=False, scale=3,
            elem_id="weights-configuration",
        )  # fmt: skip
        whole = gr.Button("Quantize the model for its map", size="sm", visible=False, scale=1, min_width=160, elem_id="weights-whole")
        cancel = gr.Button("Cancel", size="sm", visible=False, scale=0, min_width=90)
    maps_line = gr.HTML("", elem_id="weights-maps-status", padding=False)
    with gr.Row():
        with gr.Column(min_width=320):
            error_map = chart(charts()["error_map"])
        with gr.Column(min_width=320):
            scales = chart(charts()["scales"])
    overview = chart(charts()["projections"])
    outputs = [maps_line, *error_map, *scales, *overview, whole, cancel]
    maps = Maps(shell)
    subject.change(maps.quick, subject, outputs, **LIVE)
    configuration.input(maps.choose, [told, configuration], told, **QUIET)
    stop = Cancel(status("Cancelled."))
    stop.stops(whole.click, maps.whole, subject, outputs)
    stop.by(cancel, maps_line)

    def draw(reports: Sequence[Report], layer: str, key: str) -> list[Any]:
        now = json.dumps({"model": model_of(reports), "layer": layer, "key": key})
        listed = [(r.name, k) for k, r in zip(keys_of(reports), reports, strict=True) if r.by_layer("weight_error")]
        return [*figures.render(reports, layer), gr.Dropdown(choices=listed, value=key or None), now]

    drawing = View([*figures.outputs, configuration, told], draw, pure=True)

    def render(reports: Sequence[Report], layer: str, shown: str) -> list[Any]:
        quantized, wanted = [r for r in reports if r.by_layer("weight_error")], settings(shown).get("key")
        at_once = [r for r in quantized if not maps.reads(r)]  # whose maps need no pass over the model, so that something is there to see
        return drawing.drawn(reports, layer, wanted if wanted in keys_of(quantized) else usual(at_once or quantized, shell.shelf.age))

    return View(drawing.outputs, render, [told])


class Maps:
    """The charts of one configuration: at once where its method looks at weights alone, on demand where it needs the whole model."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def choose(self, subject: str, key: str | None) -> str:
        """The subject with another configuration."""
        return json.dumps(settings(subject) | {"key": key or ""})

    def _asked(self, subject: str) -> tuple[dict[str, Any], Report | None]:
        told = settings(subject)
        return told, next(iter(self.shell.shelf.pick([str(told.get("key") or "")])), None)

    def reads(self, report: Report) -> bool:
        """Whether the configuration needs more than the weight; of a report that was recorded without it, whether its method does with its defaults."""
        usual = next((m["reads_inputs"] for m in self.shell.catalogue if m["name"] == report.experiment.spec.method), True)
        return bool(report.provenance.get("reads_inputs", usual))

    def quick(self, subject: str) -> Iterator[list[Any]]:
        """Draws what needs no model; says what the rest takes."""
        told, report = self._asked(subject)
        if report is None:
            yield self._drawn({}, None, status("Run a quantized configuration to see where its error sits."))
            return
        if self.reads(report):
            note = status(f"{report.name} reads the model's inputs, so its map takes one pass over the whole model (seconds on the bundled one); it is kept.")
            yield self._drawn({}, report, note, needs_model=True)
            return
        spec = report.experiment.spec
        wanted = {"model": report.experiment.model.name, "layer": told.get("layer", ""), "method": spec.method, "params": dict(spec.params)}
        for first, *rest in asked(self.shell.runner, "error_map", wanted, 8, lambda data: self._drawn(data, report, "")[1:]):
            yield [first, *rest]

    def whole(self, subject: str) -> Iterator[list[Any]]:
        """Quantizes the model as the report's experiment says and draws the layer's map; later layers come from the store."""
        told, report = self._asked(subject)
        if report is None:
            yield self._drawn({}, None, status("This configuration is no longer on the page.", "error"))
            return
        given = {name: value for name, value in configuration(report).items() if name not in WHOLE}  # the maps are of weights: of no cache, no head
        wanted = {"model": report.experiment.model.name, **given}

        def draw(data: dict[str, Any]) -> list[Any]:
            layer = told.get("layer", "")
            found = data["layers"].get(layer)
            return self._drawn(found | {"label": data["label"], "layer": layer} if found else {}, report, "", needs_model=True)[1:]

        yield from asked(
            self.shell.runner, "error_maps", wanted, 8, draw, "The maps of all layers are kept: choose another layer and press again, it is instant."
        )

    def _drawn(self, data: dict[str, Any], report: Report | None, note: str, needs_model: bool = False) -> list[Any]:
        values = [value for name in NAMES for value in chart_values(charts()[name], data)]
        overview = chart_values(charts()["projections"], table_of(report) if report else {})
        return [note, *values, *overview, gr.Button(visible=needs_model), gr.Button(visible=needs_model)]


TAB = Tab("weights", "Weights", build, order=10)
