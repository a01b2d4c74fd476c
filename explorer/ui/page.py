"""What happens on the page: handlers as plain functions and generators over a runner. They hold no state of any session."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Protocol

import gradio as gr
from gradio.components.plot import PlotData

from explorer.figures import Figure, figures, short_layer
from explorer.records import Event, InputError, Progress, Report
from explorer.ui.controls import Control, parameters
from explorer.ui.session import Shelf, arrange, keys_of
from explorer.ui.table import comparison, origin, samples

OPTIONS = ("evaluation", "text", "calibration", "sequences", "seed", "kv_bits")  # of a run, beside model, method and its parameters


class Runner(Protocol):
    """What the page needs of a runner; closing the generator cancels."""

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]: ...


def draw(figure: Figure, reports: Sequence[Report], layer: str) -> PlotData:
    """A figure as the page takes it, with a button that downloads it as SVG."""
    config = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]], "toImageButtonOptions": {"format": "svg", "filename": figure.name}}
    return PlotData(type="plotly", plot=json.dumps(figure.draw(reports, layer) | {"config": config}))


def layer_names(reports: Sequence[Report]) -> list[str]:
    """Layers that any of the reports measured, in the model's order."""
    return list(dict.fromkeys(m.layer for r in reports for m in r.measurements if m.layer))


def status(text: str, kind: str = "", share: float | None = None) -> str:
    """The status line; `text` is escaped here."""
    bar = f"<progress max='1' value='{share:.3f}' aria-label='progress'></progress>" if share is not None else ""
    return f"<div class='status {kind}' role='status'>{bar}<span>{escape(text)}</span></div>"


class Clock:
    """Turns progress into status lines, at most five a second, with the time left in a stage once it can be told."""

    def __init__(self) -> None:
        self.started = self._stage_started = time.monotonic()
        self._stage, self._shown = "", 0.0

    def seconds(self) -> float:
        """Since the run was pressed."""
        return time.monotonic() - self.started

    def line(self, event: Progress, what: str) -> str | None:
        """The status line for an event of `what`, or None when it is too soon for another."""
        now = time.monotonic()
        if event.stage == self._stage and now - self._shown < 0.2:
            return None
        self._stage_started = now if event.stage != self._stage else self._stage_started
        self._stage, self._shown = event.stage, now
        share, spent = event.done / max(1, event.total), now - self._stage_started
        left = f", about {spent * (1 - share) / share:.0f} s left in this stage" if share > 0.1 and spent > 1 else ""
        count = f" {event.done} of {event.total}" if event.total > 1 else ""
        return status(f"{what}{event.stage}{count}: {event.detail} ({now - self.started:.0f} s{left})", "busy", share)


class Page:
    """Handlers of one app. Holds the shelf and the runner."""

    def __init__(self, runner: Runner, shelf: Shelf) -> None:
        self.runner, self.shelf = runner, shelf
        self.controls: list[Control] = []

    def view(self, reports: Sequence[Report], layer: str | None) -> list[Any]:
        """Everything that shows results: what is compared, table, samples, layer choice, then of each figure whether it is shown, plot, summary."""
        names = layer_names(reports)
        layer = layer if layer in names else (names[len(names) // 2] if names else "")
        measured = {m.metric for report in reports for m in report.measurements}
        drawn: list[Any] = []
        for figure in figures().values():
            shown = gr.Column(visible=not reports or measured.issuperset(figure.needs))
            drawn += [shown, draw(figure, reports, layer), figure.summary(reports, layer)]
        keys = keys_of(reports)
        compared = gr.Dropdown(choices=[(r.name, key) for key, r in zip(keys, reports, strict=True)], value=keys, multiselect=True, allow_custom_value=True)
        picker = gr.Dropdown(choices=[(short_layer(name), name) for name in names], value=layer or None)
        return [compared, comparison(reports), samples(reports), picker, *drawn]

    def run(self, keys: list[str], layer: str | None, model: str, method: str, *values: Any) -> Iterator[list[Any]]:
        """Streams the status; shows the result at the end. Bad input and failures are a sentence, and what is on screen stays.

        The baseline runs first, so that the differences are to the same model, text and device. values: the OPTIONS, then the controls.
        """
        options = dict(zip(OPTIONS, values, strict=False))
        same = [gr.skip()] * (4 + 3 * len(figures()))
        clock, shown, sentence, left = Clock(), self.shelf.pick(keys), "", ""
        asked = [("", str(method), parameters(method, self.controls, values[len(OPTIONS) :]), options)]
        if method != "none" or options.get("kv_bits") != 16:
            asked.insert(0, ("baseline: ", "none", {}, options | {"kv_bits": 16}))
        try:
            for what, name, params, given in asked:
                events = self.runner.run(str(model or ""), name, params, **given)
                try:
                    for event in events:
                        if isinstance(event, Report):
                            self.shelf.add(event)
                            shown, note = arrange(shown, event)
                            left = note or left
                            sentence = f"{event.name}: {origin(event)}, {clock.seconds():.1f} s. {left}"
                        elif isinstance(event, Progress) and (line := clock.line(event, what)):
                            yield [line, *same]
                finally:
                    events.close()
            yield [status(sentence, "done"), *self.view(shown, layer)]
        except InputError as error:
            yield [status(str(error), "error"), *same]
        except Exception as error:  # the outermost boundary: whoever pressed Run gets a sentence, the log the rest
            logging.getLogger(__name__).exception("a run failed")
            kept = "What was measured before is kept; try a smaller model or other parameters."
            yield [status(f"The run failed ({type(error).__name__}: {str(error)[:200]}). {kept}", "error"), *same]

    def choose(self, keys: list[str], layer: str | None) -> list[Any]:
        """Shows the configurations that are left after one was taken off; the baseline stays."""
        shown = self.shelf.with_baseline(self.shelf.pick(keys)) or self.shelf.first()[:1]
        return [status("What left the page stays in the store: running it again is instant."), *self.view(shown, layer)]

    def reset(self, layer: str | None) -> list[Any]:
        """Back to the configurations a new page starts with."""
        return [status("Showing the recorded results of the bundled model."), *self.view(self.shelf.first(), layer)]

    def pick_layer(self, keys: list[str], layer: str) -> list[Any]:
        """Plot and summary of each figure that shows one layer."""
        reports = self.shelf.pick(keys)
        wanted = (figure for figure in figures().values() if figure.by_layer)
        return [part for figure in wanted for part in (draw(figure, reports, layer), figure.summary(reports, layer))]
