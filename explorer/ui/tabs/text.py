"""Text: the same prompt through all compared configurations, in step; where they part, what it costs token by token, and the guard's verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from explorer.figures import charts, places
from explorer.records import Answer, Report
from explorer.ui.asking import data_of, with_options
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, chart_values, heading
from explorer.ui.session import TEXTS, is_baseline
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.written import samples, texts
from explorer.verdict import guard

PROMPTS = {
    "Building": "To build the library from source,",
    "Python": "def main():\n    parser = argparse.ArgumentParser(",
    "Lists": "The following options are available:\n\n- ",
    "History": "In the year 1815, the emperor of France",
}


WRITE = "Press Write for your own prompt: up to four configurations and the baseline, side by side."


def build(shell: Shell) -> View:
    heading(
        "The same prompt through all of them, in step",
        "See whether each text is still a good one. After Write a frame marks the token at which a configuration leaves the baseline, and pointing at a token "
        "tells its numbers.",
    )
    with gr.Row(elem_id="prompt-row"):
        prompt = gr.Textbox(PROMPTS["Building"], label="Prompt", lines=5, max_lines=8, max_length=8000, scale=4, min_width=280, elem_id="prompt")
        with gr.Column(scale=2, min_width=240):
            new = gr.Slider(16, 256, value=64, step=16, label="New tokens")
            with gr.Row():
                heat = gr.Slider(0, 1.5, value=0, step=0.1, label="Temperature", info="0: always the likeliest token.", min_width=130)
                seed = gr.Number(0, minimum=0, precision=0, label="Seed", info="The same noise for all.", min_width=90)
    with gr.Row(elem_id="prompt-examples"):
        for name, text in PROMPTS.items():
            button = gr.Button(name, size="sm", min_width=80)
            button.click(partial(str, text), None, prompt, queue=False, **QUIET)
    with gr.Row():
        write = gr.Button("Write", variant="primary", elem_id="write", min_width=110, scale=0)
        stop = gr.Button("Stop", variant="stop", elem_id="write-stop", min_width=110, scale=0)
    line = gr.HTML(status(WRITE), padding=False, elem_id="text-status")
    written = gr.HTML(samples([]), elem_id="samples")
    with gr.Column(visible=False) as below:
        strip = [below, *chart(charts()["token_divergence"])]
    heading("Silent-failure guard", "See the verdict on each configuration; open it for every check, its numbers and its limit.")
    guarded = gr.HTML(guard([]), elem_id="guard")
    for one in EXPERIMENTS:
        _experiment(shell, one)
    shell.linked["text"] = {"prompt": prompt, "new": new, "temperature": heat, "seed": seed}
    stopping = Cancel(status("Stopped. What was written stays."))
    asked_for = [shell.compared, prompt, new, heat, seed]
    stopping.stops(write.click, partial(wrote, shell), asked_for, [line, written, *strip, guarded], concurrency_limit=16)
    stopping.by(stop, line)

    def render(reports: Sequence[Report], layer: str) -> list[Any]:
        return [status(whose_texts(reports)), samples(reports), guard(reports)]

    return View([line, written, guarded], render, pure=True)


@dataclass(frozen=True)
class Experiment:
    """One that runs a task for each compared configuration and draws a row for each. name: of its chart; title, see: what stands over its button."""

    name: str
    title: str
    task: str
    see: str
    button: str
    waiting: str


EXPERIMENTS = (
    Experiment(
        "choices", "Multiple choice", "choices",
        "Does a quantized model still pick the true continuation of a passage among four, and are its answers the same ones?",
        "Ask the questions", "384 questions for each compared configuration; on the bundled model about nine seconds each with two cores.",
    ),
    Experiment(
        "robustness", "Perturbed prompts", "perturb",
        "Does a typo, a missing word or a word in capitals change the next token of a quantized model more often than the baseline's?",
        "Perturb the prompts", "About a thousand prompts for each compared configuration; half a minute each on the bundled model.",
    ),
)  # fmt: skip


def _experiment(shell: Shell, one: Experiment) -> None:
    """Lays out an experiment."""
    heading(one.title, one.see)
    with gr.Row():
        start = gr.Button(one.button, elem_id=one.task, min_width=210, scale=0)
        stop = gr.Button("Stop", variant="stop", min_width=110, scale=0)
    line = gr.HTML(status(one.waiting), padding=False)
    with gr.Column(visible=False) as below:
        shown = [below, *chart(charts()[one.name])]
    stopping = Cancel(status("Stopped. Configurations that were finished stay."))
    stopping.stops(start.click, partial(row_by_row, shell, one), shell.compared, [line, *shown], concurrency_limit=16)
    stopping.by(stop, line)


def whose_texts(reports: Sequence[Report]) -> str:
    """What is said above the texts that came with the runs."""
    written = [r for r in reports if r.value("sample_text") is not None]
    if not written:
        return f"These runs came without a text. {WRITE}"
    recorded = all(r.provenance.get("recorded") for r in written)
    return f"{'Recorded texts' if recorded else 'Texts of the runs'}, one prompt for all. {WRITE}"


def wrote(shell: Shell, keys: list[str], prompt: str, new: int, heat: float, seed: int) -> Iterator[list[Any]]:
    """Streams the texts as they are written; at the end the divergence by token and the guard, which then knows them."""
    reports = shell.shelf.pick(keys)
    kept = [gr.skip()] * 6
    if not reports:
        yield [status("No configuration is on the page; press Run first.", "error"), *kept[1:]]
        return
    quantized = [r for r in reports if not is_baseline(r)]
    at = [0, *(i for i, r in zip(places(reports), reports, strict=True) if not is_baseline(r))]
    clock = Clock()
    arguments = {
        "model": reports[0].experiment.model.name, "specs": [with_options(r) for r in quantized],
        "prompt": prompt, "new": new, "temperature": heat, "seed": seed,
    }  # fmt: skip
    try:
        for event in watched(shell.runner.do("generate", arguments), clock):
            if isinstance(event, str):
                yield [event, *kept[1:]]
            elif isinstance(event, Answer) and not event.data["done"]:
                yield [gr.skip(), texts(event.data, at), *kept[2:]]
            elif isinstance(event, Answer):
                data = data_of(event)
                each = [next(filter(is_baseline, reports), reports[0]), *quantized]
                verdicts = guard(each if is_baseline(each[0]) else reports, data)
                yield [
                    status(ended(data, event, clock), "done"),
                    texts(data, at),
                    gr.Column(visible=True),
                    *chart_values(charts()["token_divergence"], data),
                    verdicts,
                ]
    except Exception as error:  # the outermost boundary: whoever pressed Write gets a sentence
        yield [failure(error), *kept[1:]]


def ended(data: dict[str, Any], event: Answer, clock: Clock) -> str:
    """The status line after a generation: how it came about, and who left the baseline when."""
    how = "stored" if event.provenance.get("from_store") else f"{clock.seconds():.1f} s on {event.provenance.get('device', 'this device')}"
    parted = [f"{run['label']} at token {run['diverged'] + 1}" for run in data["runs"][1:] if run["diverged"] is not None]
    left = f" Left the baseline: {', '.join(parted)}." if parted else " None left the baseline's text." if data["runs"][1:] else ""
    drawn = f"temperature {data['temperature']:g}, seed {data['seed']}" if data["temperature"] else "always the likeliest token"
    return f"{len(data['runs'][0]['ids'])} tokens, {drawn}; {how}.{left}"


def row_by_row(shell: Shell, one: Experiment, keys: list[str]) -> Iterator[list[Any]]:
    """Streams an experiment's rows, one configuration after the other, each on the text that its report was measured on."""
    reports = shell.shelf.pick(keys)
    quantized, kept = [r for r in reports if not is_baseline(r)], [gr.skip()] * 3
    if not quantized:
        yield [status("No quantized configuration is on the page; run one first.", "error"), *kept]
        return
    clock, rows = Clock(), []
    text = next(words for words, source in TEXTS if source == quantized[0].experiment.evaluation.source)
    try:
        for report in quantized:
            arguments = {"model": report.experiment.model.name, **with_options(report, scored=True)}
            for event in watched(shell.runner.do(one.task, arguments), clock, f"{report.name}: "):
                if isinstance(event, str):
                    yield [event, *kept]
                elif isinstance(event, Answer):
                    rows.append(event.data)
                    yield [gr.skip(), gr.Column(visible=True), *chart_values(charts()[one.name], {"rows": rows, "provenance": event.provenance})]
        yield [status(f"{len(rows)} configurations in {clock.seconds():.1f} s; text: {text}.", "done"), *kept]
    except Exception as error:  # the outermost boundary, as above
        yield [failure(error), *kept]


TAB = Tab("text", "Text", build, order=50)
