"""A task on the page: what it is asked about a report, its status line while it works, what is drawn from it at the end, a sentence when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from explorer.records import Answer, Report
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import QUIET, Runner, settings

LIVE = QUIET | {"trigger_mode": "always_last", "concurrency_limit": 16}
PAINTED = "(text) => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(text))))"


def after_paint(told: Any) -> Any:
    """A hidden box that takes the text of the hidden box `told` once what came with it has been painted: to ask for what else a tab shows takes the
    browser as long as a picture, which should not wait for that.
    """
    asked_for = gr.Textbox("", visible="hidden")
    told.change(None, told, asked_for, js=PAINTED, api_visibility="private")
    return asked_for


def asked(runner: Runner, task: str, arguments: dict[str, Any], count: int, draw: Callable[[dict[str, Any]], list[Any]], done: str = "") -> Iterator[list[Any]]:
    """Yields [status line, *count values] for a gr.HTML and the components that `draw` fills: while the task works only the line changes."""
    same = [gr.skip()] * count
    try:
        for event in watched(runner.do(task, arguments), Clock()):
            if isinstance(event, Answer):
                yield [status(done, "done") if done else "", *draw(data_of(event))]
            elif isinstance(event, str):
                yield [event, *same]
    except Exception as error:  # the outermost boundary: whoever moved a control gets a sentence
        yield [failure(error), *same]


def configuration(report: Report, scored: bool = False) -> dict[str, Any]:
    """A report's configuration as fields of a Request: method, params, widths of cache and head, calibration. scored: and the text that it was scored on;
    a text of the visitor's own is that one, else the calibration's.
    """
    spec, read, text = report.experiment.spec, report.experiment.calibration, report.experiment.evaluation
    found = {
        "method": spec.method, "params": dict(spec.params), "kv_bits": spec.kv_bits, "head_bits": spec.head_bits, "calibration": read.source,
        "sequences": max(1, read.tokens // max(1, read.length)), "seed": read.seed, "text": read.text, "length": read.length,
    }  # fmt: skip
    return found | ({"evaluation": text.source, "text": text.text or read.text, "length": text.length, "bos": text.bos} if scored else {})


def with_options(report: Report, scored: bool = False) -> dict[str, Any]:
    """`configuration` for a task that takes all but method and params as its options."""
    rest = configuration(report, scored)
    return {"method": rest.pop("method"), "params": rest.pop("params"), "options": rest}


def data_of(event: Answer) -> dict[str, Any]:
    """An answer's data with its provenance, which the chips beside its numbers tell."""
    return event.data | {"provenance": event.provenance}


def found(runner: Runner, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The data of a quick task's answer."""
    for event in runner.do(task, arguments):
        if isinstance(event, Answer):
            return data_of(event)
    raise RuntimeError(f"the task {task} ended without an answer")


def subject_of(told: str) -> dict[str, str]:
    """{model, layer} from the hidden text that a tab keeps of what it shows; the bundled model, and no layer, where it says none."""
    wanted = settings(told)
    return {"model": str(wanted.get("model") or "demo"), "layer": str(wanted.get("layer") or "")}


def model_of(reports: list[Report] | tuple[Report, ...]) -> str:
    """The model that a page's reports are of."""
    return reports[0].experiment.model.name if reports else "demo"
