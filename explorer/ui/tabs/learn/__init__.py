"""Learn: guided walkthroughs. Predict, reveal what was recorded, measure it here, conclude; each step has a link."""

from __future__ import annotations

from functools import partial

import gradio as gr
from gradio.context import Context

from explorer.learn.handout import handout_link
from explorer.learn.stories import stories
from explorer.ui.cancel import Cancel
from explorer.ui.notes import notes
from explorer.ui.tab import QUIET, Shell, Tab, View, picked
from explorer.ui.tabs.learn.handlers import Walk, heading, listed, place, widgets
from explorer.ui.tabs.learn.revisited import reloaded, step_of

# On a phone header and bar come first: a link leads to the bar, with what it names below.
TO_TAB = """() => { if (new URLSearchParams(window.location.search).get('tab'))
  setTimeout(() => document.querySelector('#tabs > .tab-wrapper').scrollIntoView(), 400); }"""

# On a phone the answer is below the buttons.
TO_ANSWER = "() => setTimeout(() => innerWidth >= 900 || document.getElementById('learn-conclusion').scrollIntoView({ behavior: 'smooth' }), 100)"

MOVED = "(story, step) => `${story}:${step}`"

STEPPED = "(story, step) => window.stepped?.(story, step)"  # assets/address.js makes it an entry of the history

# What was revealed last, so that a reload of its step shows it again. Not in the address: a link that is passed on tells nobody the answer.
KEEP = "(answer, ...revealed) => { if (answer) sessionStorage.setItem('revealed', JSON.stringify(revealed)); }"
KEPT = "(kept, ...notes) => [sessionStorage.getItem('revealed') ?? '', ...notes]"


def build(shell: Shell) -> View | None:
    """Lays out the story picker, one step, and what it reveals."""
    walk, first = Walk(shell), next(iter(stories()))
    choice, amount = widgets(stories()[first].steps[0].predict)
    noted = [done, right, seen] = [notes(f"learn-{name}", {}) for name in ("done", "right", "seen")]
    with gr.Row(elem_id="learn-pick"):
        story = gr.Dropdown(listed({}), value=first, label="Walkthrough", elem_id="learn-story", filterable=False, scale=5)
        step = gr.Radio([(str(i + 1), i) for i in range(len(stories()[first].steps))], value=0, label="Step", elem_id="learn-step", scale=3)
    text = gr.HTML(heading(*place(first, 0)), elem_id="learn-text")
    choices = gr.Radio(**choice, elem_id="learn-predict")
    slider = gr.Slider(**amount, elem_id="learn-number")
    moved = gr.Textbox("", visible="hidden", max_length=80)  # the step whose number was set: where the slider starts is no prediction
    kept = gr.Textbox("", visible="hidden", max_length=300)
    with gr.Row(elem_id="learn-buttons"):
        reveal = gr.Button("Reveal", variant="primary", elem_id="learn-reveal", min_width=110)
        measure = gr.Button("Measure here", elem_id="learn-measure", min_width=130)
        compare = gr.Button("In Compare", elem_id="learn-compare", min_width=110, visible=bool(stories()[first].steps[0].runs))
        back = gr.Button("Back", elem_id="learn-back", min_width=70)
        following = gr.Button("Next", elem_id="learn-next", min_width=70)
    line = gr.HTML("", visible=False, elem_id="learn-status", padding=False)
    conclusion = gr.HTML("", elem_id="learn-conclusion")
    plot = gr.Plot(visible=False, show_label=False, elem_id="plot-learn", container=False)
    words = gr.HTML("", elem_classes=["summary"], padding=False)
    handout = gr.HTML(handout_link(first), elem_id="learn-handout")
    shown = [story, step, text, choices, slider, plot, words, conclusion, line, reveal, measure, compare, moved]
    told = [plot, words, conclusion, done, story, right, seen]
    quick = QUIET | {"queue": False}
    stopping = Cancel("")  # another step's page has no room for what is still measured for this one
    measured = stopping.stops(measure.click, walk.measure, [story, step, choices, slider, moved, *noted], [line, *told], concurrency_limit=64)
    turned = [
        stopping.instead(story.input, lambda name, *state: walk.show(name, 0, *state), [story, *noted], shown),
        stopping.instead(step.input, walk.show, [story, step, *noted], shown),
        stopping.instead(back.click, partial(walk.turn, by=-1), [story, step, *noted], shown),
        stopping.instead(following.click, partial(walk.turn, by=1), [story, step, *noted], shown),
    ]
    for event in turned:
        event.then(None, [story, step], None, js=STEPPED)
    stopping.instead(shell.picks["step"].change, lambda at, *state: walk.show(*step_of(picked(at)), *state), [shell.picks["step"], *noted], shown)
    slider.input(None, [story, step], moved, js=MOVED)
    answered = reveal.click(walk.reveal, [story, step, choices, slider, moved, *noted], told, **quick)
    answered.then(None, None, None, js=TO_ANSWER)
    for event in (answered, measured):
        event.then(None, [conclusion, story, step, choices, slider, moved], None, js=KEEP)
    compare.click(walk.compare, [story, step, shell.compared], [shell.bar, shell.compared, shell.status, *shell.controls], **quick)
    story.change(lambda name: handout_link(place(name, 0)[0].name), story, handout, **quick)
    _arrive(walk, [kept, *noted], shown)
    return None


def _arrive(walk: Walk, inputs: list, shown: list) -> None:
    """Shows the step that the page's address names as the page opens. inputs: what was revealed last, then the browser's notes."""

    def opened(kept: str, state: object, hits: object, seen: object, request: gr.Request) -> list:
        """Revealed where it was; which tab is open is the shell's to read."""
        asked = dict(request.query_params) if request is not None else {}
        return reloaded(walk, kept, f"{asked.get('story') or next(iter(stories()))}:{asked.get('step', '')}", state, hits, seen)

    loaded = Context.root_block.load(opened, inputs, shown, js=KEPT, **QUIET, queue=False)
    loaded.then(None, None, None, js=TO_TAB)


TAB = Tab("learn", "Learn", build, order=80)
