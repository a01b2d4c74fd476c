"""Trainer: sets of five interview questions at one's level, a daily challenge, a result sheet, and interviewer mode with runs as evidence."""

from __future__ import annotations

from functools import partial

import gradio as gr
from gradio.context import Context

from explorer.learn import progress
from explorer.learn.bank import areas, questions
from explorer.learn.interview import cards
from explorer.ui.interviewer import Interviewer, shown_card
from explorer.ui.notes import notes
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.trainer import FIELDS, Trainer, sheet


def build(shell: Shell) -> View | None:
    """Lays out the question, its answer widgets, the sheet, and below them interviewer mode."""
    trainer = Trainer(shell)
    state = notes("trainer", {})
    gr.HTML(
        f"<p class='see'>{len(questions())} questions in {len(areas())} areas. Difficulty follows your answers, what you missed comes back, "
        "and nothing about you leaves this browser.</p>"
    )
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
    feedback = gr.HTML("", elem_id="feedback")
    with gr.Accordion("Result sheet", open=False):
        result = gr.HTML(sheet({"progress": progress.fresh(), "set": None}), elem_id="sheet")
        with gr.Row():
            printed = gr.Button("Print", elem_id="print-sheet", size="sm", min_width=80)
            forget = gr.Button("Forget everything", elem_id="forget", size="sm", min_width=120)
    question = [heading, plot, choice, number, order, text, ticked, *fields, confidence, answer, recorded, following, feedback]
    quick = QUIET | {"queue": False}
    five.click(partial(trainer.start, kind="five"), [state, wanted], [state, *question, result], **quick)
    today.click(partial(trainer.start, kind="daily"), [state, wanted], [state, *question, result], **quick)
    following.click(trainer.following, [state], [state, *question, result], **quick)
    given = [state, choice, number, order, text, ticked, confidence, quiet, *fields]
    graded = [state, ticked, answer, following, feedback, result, recorded]
    running = answer.click(trainer.answer, given, graded, concurrency_limit=64, **QUIET)
    recorded.click(trainer.recorded, given, graded, cancels=[running], **quick)
    forget.click(lambda: [{}, *trainer.show({})], None, [state, *question, result], **quick)
    printed.click(None, None, None, js="() => { document.body.classList.add('print-sheet'); window.print(); document.body.classList.remove('print-sheet'); }")
    Context.root_block.load(trainer.show, [state], [*question, result], **quick)
    with gr.Accordion("Interviewer mode", open=False, elem_id="interviewer"):
        _interviewer(shell)
    return None


def _interviewer(shell: Shell) -> None:
    """A card, an answer, the reports on the page as evidence, the transcript."""
    mode, first = Interviewer(shell), next(iter(cards()))
    kept = notes("transcript", [])
    gr.HTML("<p class='see'>A card sets a constraint. Run what supports your answer in the controls; the reports compared on the page go in as evidence.</p>")
    card = gr.Dropdown([(f"{c.title} ({c.level})", name) for name, c in cards().items()], value=first, label="Card", filterable=False, elem_id="card")
    shown = gr.HTML(shown_card(first), elem_id="card-text")
    answer = gr.Textbox(label="Answer", lines=5, max_length=4000, elem_id="card-answer")
    sure = gr.Slider(0, 100, 50, step=5, label="How sure are you? %")
    with gr.Row():
        add = gr.Button("Put it on record", variant="primary", elem_id="record-answer", min_width=140)
        clear = gr.Button("Clear the transcript", elem_id="clear-transcript", min_width=140)
    met = gr.CheckboxGroup([], label="The interviewer's list: tick what was covered", visible=False, elem_id="card-check")
    transcript = gr.HTML("", elem_id="transcript")
    quick = QUIET | {"queue": False}
    card.input(mode.turn, card, [shown, answer, met], **quick)
    add.click(mode.record, [kept, card, answer, sure, shell.compared], [kept, met, transcript], **quick)
    met.input(mode.tick, [kept, met], [kept, transcript], **quick)
    clear.click(lambda: ([], ""), None, [kept, transcript], **quick)
    Context.root_block.load(mode.show, kept, transcript, **quick)


TAB = Tab("trainer", "Trainer", build, order=81)
