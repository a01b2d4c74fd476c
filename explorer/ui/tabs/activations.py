"""Activations: what enters the layers, what a transform does to one layer's inputs, and outliers planted in the whole model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from explorer.figures import charts
from explorer.findings import origin
from explorer.records import Answer, Report
from explorer.ui.asking import LIVE, after_paint, asked, model_of, subject_of
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, chart_values, report_figures
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import QUIET, Shell, Tab, View, settings

TRANSFORMS = [("as it is", "none"), ("SmoothQuant", "smooth"), ("Hadamard rotation", "rotate")]
LAYER = ("channels", "int8_error", "tokens", "input_histogram")
SWEEP = (1.0, 4.0, 16.0, 64.0, 256.0)


class Bench:
    """One layer's inputs under live controls, and the dial over the whole model."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.told = gr.Textbox("", visible="hidden", elem_id="activations-subject")
        self.subject = after_paint(self.told)
        gr.HTML(
            "<h2 class='figure'>Before and after, live</h2><p class='see'>The chosen layer's inputs on 128 tokens of calibration text, with scales that "
            "are read from 128 others; every control recomputes the layer's product at once, the model does not run again.</p>"
        )
        with gr.Row(elem_classes=["ms-controls"]):
            self.transform = gr.Radio(TRANSFORMS, value="smooth", label="Transform", min_width=260, elem_id="transform")
            self.alpha = gr.Slider(0, 1, 0.5, step=0.05, label="Alpha", info="SmoothQuant: how much moves into the weights.", min_width=240, elem_id="alpha")
            self.power = gr.Slider(
                0, 8, 0, step=1, label="Plant outliers", info="Power of two: 0 is none, 8 makes 256 times larger.", min_width=240, elem_id="strength"
            )
            self.count = gr.Slider(1, 16, 4, step=1, label="Channels", info="How many; the largest ones grow.", min_width=240, elem_id="channels")
        shell.linked["activations"] = {"transform": self.transform, "alpha": self.alpha, "strength": self.power, "channels": self.count}
        self.line = gr.HTML("", elem_id="activations-status", padding=False)
        self.charts: list[Any] = []
        for pair in (("channels", "int8_error"), ("tokens", "input_histogram")):
            with gr.Row():
                for name in pair:
                    with gr.Column(min_width=320):
                        self.charts += chart(charts()[name])
                        if name == "input_histogram":
                            self.curve = chart(charts()["alpha"])
        self._dial()
        self._wire()

    def _dial(self) -> None:
        self.dial = chart(charts()["outlier_dial"])
        gr.HTML(
            "<p class='hint'>Plants outliers of the strength and count chosen above in a copy of the model, quantizes it by five methods and scores "
            "1,024 tokens with each: "
            "some seconds a strength. What was measured is kept.</p>"
        )
        with gr.Row():
            self.one = gr.Button("Measure this strength", variant="primary", size="sm", min_width=140, elem_id="dial-one")
            self.sweep = gr.Button("Sweep 1 to 256", size="sm", min_width=140, elem_id="dial-sweep")
            self.stop = gr.Button("Cancel", size="sm", min_width=90, elem_id="dial-cancel")
        self.dial_line = gr.HTML("", elem_id="dial-status", padding=False)
        self.points = gr.Textbox("", visible="hidden", elem_id="dial-points")

    def _wire(self) -> None:
        own = [self.subject, self.transform, self.alpha, self.power, self.count]
        shown = [self.line, *self.charts]
        gr.on([control.input for control in own[1:]], self.look, own, shown, **LIVE)
        planted = [self.subject, self.power, self.count]
        gr.on([self.power.input, self.count.input], self.bend, planted, [self.line, *self.curve], **LIVE)
        self.subject.change(self.look, own, shown, **LIVE).then(self.bend, planted, [self.line, *self.curve], **QUIET)
        asked_of = [self.subject, self.power, self.count, self.points]
        results = [self.dial_line, self.points, *self.dial]
        stopping = Cancel(status("Cancelled. The strengths that were measured are kept."))
        stopping.stops(self.one.click, self.measure, asked_of, results)
        stopping.stops(self.sweep.click, self.all, asked_of, results)
        stopping.by(self.stop, self.dial_line)

    def look(self, subject: str, transform: str, alpha: float, power: int, count: int) -> Iterator[list[Any]]:
        """The layer's charts under the controls."""
        wanted = subject_of(subject) | {"transform": transform, "alpha": float(alpha), "strength": 2.0**power, "channels": int(count)}
        yield from asked(
            self.shell.runner, "activations", wanted, 2 * len(LAYER), lambda data: [v for name in LAYER for v in chart_values(charts()[name], data)]
        )

    def bend(self, subject: str, power: int, count: int) -> Iterator[list[Any]]:
        """The curve over alpha."""
        wanted = subject_of(subject) | {"strength": 2.0**power, "channels": int(count)}
        yield from asked(self.shell.runner, "alpha", wanted, 2, lambda data: chart_values(charts()["alpha"], data))

    def measure(self, subject: str, power: int, count: int, points: str) -> Iterator[list[Any]]:
        """The dial at one strength."""
        yield from self._strengths(subject, [2.0**power], int(count), points)

    def all(self, subject: str, power: int, count: int, points: str) -> Iterator[list[Any]]:
        """The dial from 1 to 256, drawn after every strength."""
        yield from self._strengths(subject, list(SWEEP), int(count), points)

    def _strengths(self, subject: str, strengths: list[float], count: int, points: str) -> Iterator[list[Any]]:
        model, kept, clock = subject_of(subject)["model"], settings(points), Clock()
        known = kept.get("points", []) if kept.get("ground") == [model, count] else []
        same = [gr.skip()] * 3
        try:
            for done, strength in enumerate(strengths):
                wanted = {"model": model, "strength": strength, "channels": count}
                for event in watched(self.shell.runner.do("outlier_dial", wanted), clock, f"strength {strength:g}, {done + 1} of {len(strengths)}: "):
                    if isinstance(event, str):
                        yield [event, *same]
                    elif isinstance(event, Answer):
                        known = [point for point in known if point["strength"] != strength] + [event.data]
                        now = {"points": known}
                        how = f"{origin(event.provenance)}, {clock.seconds():.0f} s"
                        where = event.provenance.get("device", "")
                        told = status(f"Strength {strength:g}, {done + 1} of {len(strengths)}: {how}, {where}, {event.data['tokens']:,} tokens.", "done")
                        yield [told, json.dumps(now | {"ground": [model, count]}), *chart_values(charts()["outlier_dial"], now)]
        except Exception as error:  # the outermost boundary: whoever pressed the button gets a sentence
            yield [failure(error), *same]


def build(shell: Shell) -> View:
    figures = report_figures("activations")
    bench = Bench(shell)

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        return [*figures.render(reports, layer), json.dumps({"model": model_of(reports), "layer": layer})]

    return View([*figures.outputs, bench.told], render, pure=True)


TAB = Tab("activations", "Activations", build, order=20)
