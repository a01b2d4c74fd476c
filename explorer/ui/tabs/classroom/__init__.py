"""Class: a teacher opens a room and leads through a walkthrough; everyone predicts; votes and the measured answer show together."""

from __future__ import annotations

from functools import partial

import gradio as gr
from gradio.context import Context

from explorer.learn.bank import areas
from explorer.learn.room import LENGTH, WORDS
from explorer.learn.stories import stories
from explorer.ui.notes import notes
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.tabs.classroom.handlers import Classroom, borrowed, keys_script
from explorer.ui.tabs.classroom.stage import question

FOLLOW = 4.0  # seconds after which a student's page looks for the next question, or for the answer
QUICK = QUIET | {"queue": False}
NEW_TICKET = (
    "(seen, ticket, choice) => [seen, ticket || [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join(''), choice]"
)

# The stage is laid out for 1440 x 900 and scaled to the screen; a narrow one has a column of its own. The chart takes the width that it has then.
PRESENT = """() => {
  const scale = () => document.body.style.setProperty('--stage', innerWidth > 900 ? Math.max(0.6, Math.min(innerWidth / 1440, innerHeight / 900)) : 1);
  if (!window.stageScales) addEventListener('resize', scale);
  window.stageScales = true;
  document.body.classList.toggle('presenting');
  scale();
  window.scrollTo(0, 0);
  requestAnimationFrame(() => window.dispatchEvent(new Event('resize')));
}"""


def build(shell: Shell) -> View | None:
    """Lays out the student's side first, then the teacher's."""
    room = Classroom()
    ticket = notes("ticket", "")
    joining = _student(room, ticket)
    with gr.Accordion("Lead a class", open=False, elem_id="teacher") as teacher:
        _teacher(room, teacher)

    def arrived(ticket: object, request: gr.Request) -> list:
        """A room named in the page's address is joined at once."""
        code = request.query_params.get("room", "")[:8] if request is not None else ""
        return [code, *room.join(code, "", ticket)]

    Context.root_block.load(arrived, ticket, joining, **QUICK)
    return None


def _student(room: Classroom, ticket: gr.BrowserState) -> list:
    with gr.Row(elem_id="join-row"):
        code = gr.Textbox(label="Room code", max_length=8, elem_id="room-code", scale=2, placeholder="five letters from the screen")
        join = gr.Button("Join", variant="primary", elem_id="join", scale=1, min_width=160)
    asked = gr.HTML("", elem_id="class-asked")
    choice = gr.Radio([], label="Your prediction", visible=False, elem_id="class-choice")
    line = gr.HTML("", elem_id="class-line", padding=False)
    seen, timer = gr.Textbox("", visible="hidden", max_length=40), gr.Timer(FOLLOW, active=False)
    shown = [asked, choice, line, seen, timer]
    for happens in (join.click, code.submit):
        happens(room.enter, [code, ticket], shown, **QUICK)
    timer.tick(room.follow, [seen, ticket], shown, **QUICK)
    seen.change(None, seen, None, js="(seen) => window.inRoom?.(seen.split(':')[0])")  # a reload finds the room in the address

    def cast(seen: object, ticket: object, choice: object) -> list:
        return [ticket, *room.voted(seen, ticket, choice)]

    # As the page sends it: a choice of the question before is refused by the room with a sentence, not by gradio as none of the list.
    choice.input(cast, [seen, ticket, choice], [ticket, *shown], js=NEW_TICKET, preprocess=False, **QUICK)
    # The same vote for scripts: POST /gradio_api/run/vote with data, fn_index (from /config) and session_hash.
    gr.api(room.vote, api_name="vote", queue=False)

    return [code, *shown]


def _posing() -> tuple[gr.Dropdown, gr.Button, gr.Textbox, gr.Textbox, gr.Radio, gr.Button, gr.HTML]:
    """Questions that are no step: the trainer's and its button, the teacher's own text, choices, right one and button, and what is said of either."""
    with gr.Accordion("A question of your own, or of the trainer's", open=False, elem_id="class-own"):
        with gr.Row(equal_height=False):
            bank = gr.Dropdown(
                [(f"{areas()[q.area].title}: {q.ask}", name) for name, q in borrowed().items()], value=None, label="Of the trainer's", elem_id="bank-question"
            )
            lent = gr.Button("Ask the trainer's", elem_id="bank-ask", scale=0, min_width=190)
        text = gr.Textbox(label="Your own", max_length=LENGTH, lines=2, elem_id="own-text")
        given = gr.Textbox(label="Choices, 2 to 4, one a line", max_length=4 * WORDS + 3, lines=4, elem_id="own-choices")
        right = gr.Radio([("None", 0), *((str(i), i) for i in range(1, 5))], value=0, label="The right choice, if there is one", elem_id="own-right")
        posed, line = gr.Button("Ask mine", elem_id="own-ask"), gr.HTML("", elem_id="own-line", padding=False)
    return bank, lent, text, given, right, posed, line


def _teacher(room: Classroom, side: gr.Accordion) -> None:
    """The teacher's side, in `side`, which is unfolded for a browser that leads a room."""
    first = next(iter(stories()))
    with gr.Row(elem_id="class-pick"):
        story = gr.Dropdown(
            [(s.title, name) for name, s in stories().items()], value=first, label="Walkthrough", filterable=False, elem_id="class-story", scale=4
        )
        step = gr.Radio([(str(i + 1), i) for i in range(len(stories()[first].steps))], value=0, label="Step", elem_id="class-step", scale=3)
    with gr.Row(elem_id="class-buttons"):
        opened = gr.Button("Open a room", variant="primary", elem_id="open-room", min_width=120)
        present = gr.Button("Present", elem_id="present", min_width=120)
        back = gr.Button("Back", elem_id="class-back", min_width=70)
        following = gr.Button("Next", elem_id="class-next", min_width=70)
        reveal = gr.Button("Reveal", elem_id="class-reveal", min_width=80)
        again = gr.Button("Ask again", elem_id="class-again", min_width=90)
    gr.HTML("<p class='hint presenter-hint'>Presenter view: → and ← turn the steps, r reveals, Escape leaves. Votes are kept in memory and carry no name.</p>")
    bank, lent, text, given, right, posed, line = _posing()
    mine, address, timer = notes("room", {}), gr.Textbox("", visible="hidden"), gr.Timer(1.5, active=False)
    with gr.Column(elem_id="stage"):
        asked = gr.HTML(question(first, 0), elem_id="class-question")
        with gr.Row():
            votes = gr.HTML("", elem_id="votes")
            invite = gr.HTML("", elem_id="invitation")
        plot = gr.Plot(visible=False, show_label=False, elem_id="plot-class", container=False)
        conclusion = gr.HTML("", elem_id="class-conclusion")
    here = "(address, story, step) => [window.location.origin + window.location.pathname, story, step]"
    turned = [story, step, asked, votes, plot, conclusion]
    opened.click(room.open, [address, story, step], [mine, invite, timer, *turned], js=here, **QUICK)
    timer.tick(room.watch, mine, votes, **QUICK)
    story.input(lambda mine, name: room.turn(mine, name, 0), [mine, story], turned, **QUICK)
    step.input(room.turn, [mine, story, step], turned, **QUICK)
    for button, by in ((back, -1), (following, 1)):
        button.click(partial(room.turn, by=by), [mine, story, step], turned, **QUICK)
    posed.click(room.pose, [mine, text, given, right], [*turned, line], **QUICK)
    lent.click(room.borrow, [mine, bank], [*turned, line], **QUICK)
    moved = [story.input, step.input, *(button.click for button in (opened, back, following, again, reveal))]
    gr.on(moved, None, None, line, js="() => ''")  # what was said of a question is not said of the next
    again.click(room.again, [mine, story, step], turned, **QUICK)
    reveal.click(room.reveal, [mine, story, step], [votes, plot, conclusion], **QUICK)
    present.click(None, None, None, js=PRESENT)
    Context.root_block.load(None, None, None, js=keys_script())
    reloaded = "(address, mine) => [window.location.origin + window.location.pathname, mine]"
    Context.root_block.load(room.resume, [address, mine], [invite, timer, *turned, side], js=reloaded, **QUICK)


TAB = Tab("classroom", "Class", build, order=82)
