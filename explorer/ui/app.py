"""The page as a whole: controls on the left, comparison and figures on the right; handlers are thin generators over a runner."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from gradio.components.plot import PlotData

from explorer.figures import Figure, figures, name_of
from explorer.records import Event, InputError, Progress, Report
from explorer.ui.controls import Control, build_controls, parameters
from explorer.ui.session import Shelf, arrange
from explorer.ui.table import comparison, samples

STYLE = Path(__file__).parent.parent.parent / "assets" / "style.css"


class Runner(Protocol):
    """What the page needs of a runner; closing the generator cancels."""

    def run(self, model: str, method: str, params: dict[str, Any], evaluation: str, text: str) -> Iterator[Event]: ...


def draw(figure: Figure, reports: list[Report], layer: str) -> PlotData:
    """A figure as the page takes it, with a button that downloads it as SVG."""
    config = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]], "toImageButtonOptions": {"format": "svg", "filename": figure.name}}
    return PlotData(type="plotly", plot=json.dumps(figure.draw(reports, layer) | {"config": config}))


def layer_names(reports: list[Report]) -> list[str]:
    """Layers that any of the reports measured, in the model's order."""
    return list(dict.fromkeys(m.layer for r in reports for m in r.measurements if m.layer))


def status(text: str, kind: str = "", share: float | None = None) -> str:
    """The status line; `text` is escaped here."""
    bar = f"<progress max='1' value='{share:.3f}' aria-label='progress'></progress>" if share is not None else ""
    return f"<div class='status {kind}' role='status'>{bar}<span>{escape(text)}</span></div>"


def progress_line(event: Progress, started: float, stage_started: float) -> str:
    """Stage, count, detail, elapsed, and the time left in this stage once it can be told."""
    now = time.monotonic()
    share = event.done / max(1, event.total)
    left = f", about {(now - stage_started) * (1 - share) / share:.0f} s left in this stage" if share > 0.1 and now - stage_started > 1 else ""
    return status(f"{event.stage}: {event.done} of {event.total} {event.detail} ({now - started:.0f} s{left})", "busy", share)


class Page:
    """Handlers of one app. Holds the shelf, the runner and the catalogue; no state of any session."""

    def __init__(self, runner: Runner, shelf: Shelf, catalogue: list[dict[str, Any]]) -> None:
        self.runner, self.shelf, self.catalogue = runner, shelf, catalogue
        self.controls: list[Control] = []

    def view(self, keys: str, layer: str | None) -> list[Any]:
        """Everything that shows results: table, samples, layer choice, then plot and summary of each figure."""
        reports = self.shelf.pick(keys)
        names = layer_names(reports)
        layer = layer if layer in names else (names[len(names) // 2] if names else "")
        drawn = [part for figure in figures().values() for part in (draw(figure, reports, layer), figure.summary(reports, layer))]
        return [comparison(reports), samples(reports), gr.Dropdown(choices=names, value=layer or None), *drawn]

    def run(self, keys: str, layer: str | None, model: str, method: str, evaluation: str, text: str, *values: Any) -> Iterator[list[Any]]:
        """Streams the status; shows the result at the end. Bad input and failures are a sentence, and what is on screen stays."""
        width = 3 + 2 * len(figures())
        same = [gr.skip()] * width
        started = stage_started = time.monotonic()
        stage, shown = "", 0.0
        events = None
        try:
            events = self.runner.run(str(model or ""), str(method), parameters(method, self.controls, values), str(evaluation), str(text or ""))
            for event in events:
                now = time.monotonic()
                if isinstance(event, Progress) and (event.stage != stage or now - shown > 0.2):
                    stage_started = now if event.stage != stage else stage_started
                    stage, shown = event.stage, now
                    yield [progress_line(event, started, stage_started), gr.skip(), *same]
                elif isinstance(event, Report):
                    yield self.finish(keys, layer, event, now - started)
        except InputError as error:
            yield [status(str(error), "error"), gr.skip(), *same]
        except (RuntimeError, MemoryError, OSError) as error:
            sentence = (
                f"The run failed ({type(error).__name__}: {str(error)[:200]}). What was measured before is kept; try a smaller model or other parameters."
            )
            yield [status(sentence, "error"), gr.skip(), *same]
        finally:
            if events is not None:
                events.close()

    def finish(self, keys: str, layer: str | None, report: Report, seconds: float) -> list[Any]:
        """The outputs that show a new report."""
        new = self.shelf.add(report)
        keys, replaced = arrange(keys, new, report.experiment.spec.method == "none")
        origin = "from the store" if report.provenance.get("from_store") else "measured now"
        room = " It took the place of the oldest configuration." if replaced else ""
        line = status(f"{name_of(report)}: {origin}, {seconds:.1f} s.{room}", "done")
        return [line, keys, *self.view(keys, layer)]

    def remove(self, keys: str, layer: str | None) -> list[Any]:
        """Takes the newest configuration off the page."""
        kept = keys.split(",")
        kept = ",".join(kept[:-1] if len(kept) > 1 else kept)
        return [status("Removed the last configuration; its results stay in the store."), kept, *self.view(kept, layer)]

    def reset(self, layer: str | None) -> list[Any]:
        """Back to the configurations a new page starts with."""
        keys = self.shelf.first_keys()
        return [status("Showing the recorded results of the bundled model."), keys, *self.view(keys, layer)]


def theme() -> gr.themes.Base:
    """Contrast of at least 4.5 for text on buttons, in light and dark; local fonts only."""
    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="md")
    return base.set(button_primary_background_fill="#0a62a0", button_primary_background_fill_dark="#0a62a0", button_primary_text_color="white",
                    button_cancel_background_fill="#a4282f", button_cancel_background_fill_dark="#a4282f", button_cancel_text_color="white")  # fmt: skip


def build(runner: Runner, seeds: list[Report], catalogue: list[dict[str, Any]], models: list[str]) -> gr.Blocks:
    """The app's Blocks. `catalogue`: the methods and their fields as JSON; `models`: names offered in the list."""
    page = Page(runner, Shelf(seeds), catalogue)
    first = page.view(page.shelf.first_keys(), None)
    with gr.Blocks(title="Quantization Explorer", analytics_enabled=False) as blocks:
        gr.HTML(
            "<header><h1>Quantization Explorer</h1><p>Quantize a language model, run it in low bits, and see what it costs and what it saves. "
            "Every number is measured, with its interval, device and kernel.</p></header>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                inputs, buttons = _controls(page, catalogue, models)
            with gr.Column(scale=3, min_width=320, elem_id="results"):
                outputs = _results(page, first)
        _wire(page, inputs, buttons, outputs)
    return blocks


def _controls(page: Page, catalogue: list[dict[str, Any]], models: list[str]) -> tuple[list[Any], dict[str, gr.Button]]:
    model = gr.Dropdown(models, value=models[0], allow_custom_value=True, label="Model", info="The bundled model, a hub id, or a folder.", elem_id="model")
    default = "rtn"
    method = gr.Dropdown([(m["title"], m["name"]) for m in catalogue], value=default, label="Method", elem_id="method")
    page.controls = build_controls(catalogue, method, default)
    evaluation = gr.Radio([("bundled", "bundled"), ("pasted", "pasted")], value="bundled", label="Evaluation text")
    text = gr.Textbox(label="Your text", lines=4, max_lines=8, max_length=200_000, visible=False, placeholder="At least 512 tokens, about 350 words.")
    evaluation.change(lambda value: gr.Textbox(visible=value == "pasted"), evaluation, text, queue=False, api_visibility="private")
    with gr.Row():
        run = gr.Button("Run", variant="primary", elem_id="run")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
    with gr.Row():
        remove = gr.Button("Remove last", size="sm", elem_id="remove")
        reset = gr.Button("Reset", size="sm", elem_id="reset")
    inputs = [model, method, evaluation, text, *(control.component for control in page.controls)]
    return inputs, {"run": run, "cancel": cancel, "remove": remove, "reset": reset}


def _results(page: Page, first: list[Any]) -> dict[str, Any]:
    line = gr.HTML(status("Showing recorded results of the bundled model. Change a control and press Run to measure here."), elem_id="status")
    keys = gr.Textbox(page.shelf.first_keys(), visible=False)
    table = gr.HTML(first[0], elem_id="comparison")
    layer = first[2]
    picker, parts, order = None, [], list(figures().values())
    with gr.Accordion("What each configuration writes", open=True):
        text = gr.HTML(first[1])
    for index, figure in enumerate(order):
        if figure.by_layer and picker is None:
            picker = gr.Dropdown(layer.choices, value=layer.value, label="Layer shown in the next three figures", elem_id="layer", filterable=False)
        gr.HTML(f"<h2 class='figure'>{escape(figure.title)}</h2><p class='see'>{escape(figure.see)}</p>")
        chart = gr.Plot(first[3 + 2 * index], show_label=False, elem_id=f"plot-{figure.name}", container=False)
        words = gr.Markdown(first[4 + 2 * index], elem_classes=["summary"])
        with gr.Accordion("Why", open=False):
            gr.Markdown(figure.why)
        parts += [chart, words]
    return {"status": line, "keys": keys, "table": table, "samples": text, "layer": picker, "parts": parts}


def _wire(page: Page, inputs: list[Any], buttons: dict[str, gr.Button], out: dict[str, Any]) -> None:
    shown = [out["table"], out["samples"], out["layer"], *out["parts"]]
    everything = [out["status"], out["keys"], *shown]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    run = buttons["run"].click(page.run, [out["keys"], out["layer"], *inputs], everything, concurrency_limit=8, **quiet)
    cancelled = status("Cancelled. What was measured before is kept; press Run to go on from there.")
    buttons["cancel"].click(lambda: cancelled, None, out["status"], cancels=[run], queue=False, **quiet)
    buttons["remove"].click(page.remove, [out["keys"], out["layer"]], everything, **quiet)
    buttons["reset"].click(page.reset, [out["layer"]], everything, **quiet)
    by_layer = [i for i, figure in enumerate(figures().values()) if figure.by_layer]
    targets = [out["parts"][2 * i + k] for i in by_layer for k in (0, 1)]

    def pick_layer(keys: str, layer: str) -> list[Any]:
        view = page.view(keys, layer)[3:]
        return [view[2 * i + k] for i in by_layer for k in (0, 1)]

    out["layer"].input(pick_layer, [out["keys"], out["layer"]], targets, **quiet)
