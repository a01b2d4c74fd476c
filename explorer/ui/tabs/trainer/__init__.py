"""Trainer: sets of five interview questions at one's level, a daily challenge, a result sheet, and interviewer mode with runs as evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import Context

from explorer.bugs import BUGS
from explorer.figures import charts
from explorer.learn import progress
from explorer.learn.bank import areas, questions
from explorer.learn.interview import cards
from explorer.records import Report
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, frame
from explorer.ui.notes import notes
from explorer.ui.session import is_baseline, keys_of
from explorer.ui.status import status
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.failures import PLOTS
from explorer.ui.tabs.trainer.diagnosis import START, Diagnosis
from explorer.ui.tabs.trainer.handlers import FIELDS, Trainer
from explorer.ui.tabs.trainer.interviewer import Interviewer, shown_card
from explorer.ui.tabs.trainer.results import sheet

# Gradio puts its own classes before the rules of a page's @media print, where no rule of body matches any more; so this style is put in while printing.
PRINT = """() => {
  const style = Object.assign(document.createElement('style'), {media: 'print', textContent: `
    body, body * { visibility: hidden !important; background: #fff !important; }
    #sheet, #sheet * { visibility: visible !important; color: #000 !important; }
    #sheet { position: fixed !important; inset: 0; }`});
  document.head.append(style);
  window.print();
  style.remove();
}"""

ABOUT = (
    "Difficulty follows your answers, and what you missed comes back. Your progress is kept in this browser only: it is sent with each answer to be graded, "
    "and not stored here. An answer in your own words is not sent at all."
)


def build(shell: Shell) -> View | None:
    """Lays out the question, its answer widgets, the sheet, and below them interviewer mode."""
    trainer = Trainer(shell)
    state = notes("trainer", {})
    gr.HTML(f"<p class='see'>{len(questions())} questions in {len(areas())} areas. {ABOUT}</p>")
    with gr.Row():
        five = gr.Button("New set of five", variant="primary", elem_id="set-five", min_width=140)
        today = gr.Button("Daily challenge", elem_id="set-daily", min_width=130)
        wanted = gr.Dropdown([(area.title, name) for name, area in areas().items()], multiselect=True, label="Areas (all when empty)", elem_id="areas", scale=3)
        quiet = gr.Checkbox(False, label="Explain at the end", elem_id="quiet", min_width=150)
    heading = gr.HTML("<p class='see'>Start a set of five at your level, or today's challenge.</p>", elem_id="question")
    plot = gr.Plot(visible=False, show_label=False, elem_id="plot-question", container=False)
    choice = gr.Radio([], label="Your answer", visible=False, elem_id="answer-choice")
    number = gr.Number(label="Your number", visible=False, elem_id="answer-number")
    order = gr.Dropdown([], multiselect=True, label="Pick in order, the first one first", visible=False, elem_id="answer-order")
    text = gr.Textbox(label="Your answer, for yourself", lines=4, max_length=4000, visible=False, elem_id="answer-text")
    ticked = gr.CheckboxGroup([], label="My answer covered", visible=False, elem_id="answer-check")
    with gr.Row():
        fields = [gr.Dropdown([], label="", visible=False, filterable=False, min_width=120, elem_id=f"answer-field-{i}") for i in range(FIELDS)]
    confidence = gr.Slider(0, 100, 50, step=5, label="How sure are you? %", visible=False, elem_id="confidence")
    with gr.Row():
        answer = gr.Button("Answer", variant="primary", visible=False, elem_id="answer", min_width=140)
        recorded = gr.Button("Do not wait: grade by the recorded run", visible=False, elem_id="answer-recorded", min_width=140)
        following = gr.Button("Next question", variant="primary", visible=False, elem_id="next-question", min_width=140)
        skip = gr.Button("Skip", visible=False, elem_id="skip-question", min_width=80)
    feedback = gr.HTML("", elem_id="feedback")
    with gr.Accordion("Result sheet", open=False):
        result = gr.HTML(sheet({"progress": progress.fresh(), "set": None}), elem_id="sheet")
        with gr.Row():
            printed = gr.Button("Print", elem_id="print-sheet", size="sm", min_width=80)
            forget = gr.Button("Forget everything", elem_id="forget", size="sm", min_width=120)
    question = [heading, plot, choice, number, order, text, ticked, *fields, confidence, answer, recorded, following, skip, feedback]
    quick = QUIET | {"queue": False}
    five.click(partial(trainer.start, kind="five"), [state, wanted], [state, *question, result], **quick)
    today.click(partial(trainer.start, kind="daily"), [state, wanted], [state, *question, result], **quick)
    following.click(trainer.following, [state], [state, *question, result], **quick)
    given = [state, choice, number, order, ticked, confidence, quiet, *fields]  # not the text: it is for whoever wrote it
    graded = [state, ticked, answer, following, feedback, result, recorded, skip]
    waiting = Cancel("")
    waiting.stops(answer.click, trainer.answer, given, graded, concurrency_limit=64, trigger_mode="once")
    waiting.instead(recorded.click, trainer.recorded, given, graded)
    waiting.instead(skip.click, trainer.skip, [state], [state, *question, result])
    forget.click(lambda: [{}, *trainer.show({})], None, [state, *question, result], **quick)
    printed.click(None, None, None, js=PRINT)
    Context.root_block.load(trainer.show, [state], [*question, result], **quick)
    ticket = gr.Textbox("", visible="hidden")  # outside what opens later: a hidden part of that would show
    with gr.Accordion("Interviewer mode", open=False, elem_id="interviewer"):
        evidence = _interviewer(shell, ticket)
    return View([evidence], lambda reports, layer: [attachable(reports)])


def attachable(reports: Sequence[Report]) -> Any:
    """The choice of evidence: the quantized runs on the page that are whole. What was attached stays attached."""
    quantized = [r for r in reports if not is_baseline(r) and not r.missing]
    return gr.Dropdown(choices=[(r.name, key) for r, key in zip(quantized, keys_of(quantized), strict=True)])


def _interviewer(shell: Shell, ticket: Any) -> Any:
    """A card, an answer, runs on the page as evidence, the transcript. ticket: of the broken model. Returns the choice of evidence."""
    mode, first = Interviewer(shell), next(iter(cards()))
    offered = [r for r in shell.shelf.first() if not is_baseline(r)]
    kept = notes("transcript", [])
    gr.HTML("<p class='see'>A card sets a constraint. Run what supports your answer in the controls, or plan it in the Planner, and attach it.</p>")
    card = gr.Dropdown([(f"{c.title} ({c.level})", name) for name, c in cards().items()], value=first, label="Card", filterable=False, elem_id="card")
    shown = gr.HTML(shown_card(first), elem_id="card-text")
    with gr.Column(visible=False) as broken:
        named, step = _broken(shell, mode.diagnosis, ticket)
    answer = gr.Textbox(label="Answer", lines=5, max_length=4000, elem_id="card-answer")
    evidence = gr.Dropdown(
        [(r.name, key) for r, key in zip(offered, keys_of(offered), strict=True)], multiselect=True, allow_custom_value=True, max_choices=5,
        label="Evidence: runs on the page", elem_id="card-evidence",
    )  # fmt: skip
    plans = gr.Checkbox(False, label="Evidence: the Planner's answer, as its tab is set now", elem_id="card-plan")
    sure = gr.Slider(0, 100, 50, step=5, label="How sure are you? %", elem_id="card-sure")
    with gr.Row():
        add = gr.Button("Put it on record", variant="primary", elem_id="record-answer", min_width=140)
        clear = gr.Button("Clear the transcript", elem_id="clear-transcript", min_width=140)
    met = gr.CheckboxGroup([], label="The interviewer's list: tick what was covered", visible=False, elem_id="card-check")
    line = gr.HTML("", padding=False, elem_id="card-status")
    transcript = gr.HTML("", elem_id="transcript")
    quick = QUIET | {"queue": False}
    card.input(mode.choose, card, [shown, answer, met, broken], **quick)
    add.click(mode.record, [kept, card, answer, sure, evidence, ticket, named, step, plans, *shell.planned], [kept, met, transcript, line], **QUIET)
    met.input(mode.tick, [kept, met], [kept, transcript], **quick)
    clear.click(lambda: ([], ""), None, [kept, transcript], **quick)
    Context.root_block.load(mode.show, kept, transcript, **quick)
    return evidence


def _broken(shell: Shell, diagnosis: Diagnosis, ticket: Any) -> tuple[Any, Any]:
    """The broken model's part of a card: draw, evidence, diagnosis and next step. Returns the two choices."""
    with gr.Row():
        draw = gr.Button("Draw a broken model", variant="primary", elem_id="draw-broken", min_width=150)
        stop = gr.Button("Cancel", variant="stop", min_width=90)
        control = gr.Button("Its configuration into the controls", elem_id="broken-control", min_width=150)
    line = gr.HTML(status(START), padding=False, elem_id="broken-status")
    table = gr.HTML("", elem_id="broken-report")
    with gr.Column(visible=False) as below:
        plots = [
            item for figure in PLOTS for item in frame(dataclasses.replace(figure, name=f"case-{figure.name}"), figure.draw([], ""), figure.summary([], ""))
        ]
        plots += chart(dataclasses.replace(charts()["group_error"], name="case-group_error"))
    named = gr.Radio([(bug.title, bug.name) for bug in BUGS.values()], label="Diagnosis", elem_id="diagnosis")
    step = gr.Radio([(bug.settle, bug.name) for bug in sorted(BUGS.values(), key=lambda bug: bug.settle)], label="Next step", elem_id="next-step")
    stopping = Cancel(status("Cancelled. What was measured is kept."))
    stopping.stops(draw.click, diagnosis.draw, shell.layer, [line, ticket, table, below, *plots], concurrency_limit=16)
    stopping.by(stop, line)
    draw.click(lambda: (None, None), None, [named, step], queue=False, **QUIET)
    control.click(diagnosis.controls, ticket, shell.controls, queue=False, **QUIET)
    return named, step


TAB = Tab("trainer", "Trainer", build, order=81)
