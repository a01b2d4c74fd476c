"""Teaching a class: a room with a code and a QR, one step at a time in large type, votes as a live histogram, then the measured answer."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr
import segno

from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.room import Asked, Rooms
from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Predict, Step, conclude, judge, stories
from explorer.records import InputError
from explorer.ui.frame import plotted
from explorer.ui.learn import chips, concluded, drawn, place
from explorer.ui.page import status

CLOSED = "<div class='conclusion'><p class='said'><b>The votes are in.</b> No run answers this one: it is your teacher's.</p></div>"
NO_CODE = "Enter the room's code first: five letters, on the screen of whoever leads the class."
BINS = 5  # choices that a number to be predicted is offered as
ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,120}(/[\w./-]{0,120})?", re.ASCII)
CHOICE = re.compile(r"[\w-]{1,60}:\d{1,3}:\d{1,3}", re.ASCII)


def edges(predict: Predict) -> list[float]:
    """Bounds of the bins of a number: even on a log scale when the range spans a factor of 8."""
    low, high = predict.low, predict.high
    if low > 0 and high / low >= 8:
        return [low * (high / low) ** (i / BINS) for i in range(BINS + 1)]
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def choices(predict: Predict) -> tuple[str, ...]:
    """What a class votes on: the options, or ranges of the number."""
    if predict.options:
        return predict.options
    bounds = [f"{edge:,.{predict.digits}f}" for edge in edges(predict)]
    return tuple(f"{a} to {b} {predict.unit}".strip() for a, b in pairwise(bounds))


def right_choice(step: Step) -> int:
    """Which of `choices` the recorded numbers make right."""
    functions = Facts(recorded(), recorded_answers()).functions()
    if step.predict.options:
        return int(evaluate(step.predict.right, {}, functions))
    value = float(evaluate(step.predict.answer, {}, functions))
    return min(BINS - 1, sum(value >= edge for edge in edges(step.predict)[1:-1]))


def bars(names: Sequence[str], counts: Sequence[int], right: int | None = None) -> str:
    """The votes as horizontal bars; the right one is marked once it is revealed."""
    most, total = max([1, *counts]), sum(counts)
    rows = []
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        mark = " class='right'" if i == right else ""
        width = 100 * count / most
        label = f"{'✓ ' if i == right else ''}{escape(name)}"
        rows.append(f"<tr{mark}><th scope='row'>{label}</th><td><span style='width:{width:.0f}%'></span></td><td>{count}</td></tr>")
    return f"<table class='votes' aria-label='votes'>{''.join(rows)}</table><p class='hint'>{total} vote{'s' if total != 1 else ''}</p>"


def enlarged(plot: dict[str, Any]) -> dict[str, Any]:
    """The plot for the back row: larger type and markers."""
    shape = plot["layout"] | {"font": plot["layout"].get("font", {}) | {"size": 18}, "height": max(520, plot["layout"].get("height", 0))}
    traces = [t | ({"marker": t["marker"] | {"size": 12}} if isinstance(t.get("marker", {}).get("size"), int) else {}) for t in plot["data"]]
    return plot | {"layout": shape, "data": traces}


def joined(address: str, code: str) -> str:
    """The link that opens the room, "" for an address that is none."""
    base = str(address).split("?")[0].split("#")[0]
    return f"{base}?tab=classroom&room={code}" if ADDRESS.fullmatch(base) else ""


def square(link: str) -> str:
    """The link as a QR code, SVG."""
    out = io.BytesIO()
    segno.make(link, error="m").save(out, kind="svg", scale=5, border=2, dark="#000", light="#fff", xmldecl=False, svgclass="qr", omitsize=True)
    return out.getvalue().decode()


def invitation(address: str, code: str) -> str:
    """The code of a room, its link and its QR."""
    link = joined(address, code)
    text = f"<a href='{escape(link)}' target='_blank' rel='noopener'>{escape(link)}</a>" if link else ""
    image = square(link) if link else ""
    return f"<div class='room'>{image}<div><p>Open the Class tab and enter</p><p class='code'>{escape(code)}</p><p class='hint'>{text}</p></div></div>"


def question(story: Any, step: Any) -> str:
    """A step as a class sees it: one question in large type."""
    found, at = place(story, step)
    own = found.steps[at]
    return (
        f"<div class='question'><p class='where'>{escape(found.title)} · {at + 1} of {len(found.steps)}</p><h2>{escape(own.title)}</h2>"
        f"<p>{escape(own.text)}</p><p class='ask'>{escape(own.predict.ask)}</p></div>"
    )


def shown(asked: Asked) -> str:
    """What a class is asked, a step or the teacher's own question."""
    if not asked.text:
        return question(asked.story, asked.step)
    return f"<div class='question'><p class='where'>A question of your teacher's</p><p class='ask'>{escape(asked.text)}</p></div>"


def named(asked: Asked, choice: int) -> str:
    """A choice as a page sends it: with its question, so that a tap on an old one is known for what it is."""
    return f"{asked.story}:{asked.step}:{choice}"


def own_step(asked: Asked) -> Step:
    """The step that a class is asked."""
    return stories()[asked.story].steps[asked.step]


def right_answer(asked: Asked) -> str:
    """The right choice, of a number with its value, HTML."""
    own, reports, answers = own_step(asked), recorded(), recorded_answers()
    exact = "" if own.predict.options else f": {judge(own, None, reports, answers)[1]}"
    return f"<p class='said'><b>The answer:</b> ✓ {escape(asked.choices[right_choice(own)])}{escape(exact)} {chips(own, reports, answers)}</p>"


def answer(asked: Asked) -> str:
    """What students read once the answer is out: the right choice and the conclusion."""
    if asked.text:
        return CLOSED
    found = conclude(own_step(asked), recorded(), recorded_answers())
    return f"<div class='conclusion {'holds' if found.holds else 'fails'}'>{right_answer(asked)}<p>{escape(found.text)}</p></div>"


def counted(asked: Asked, counts: Sequence[int]) -> str:
    """The votes; the right bar is marked once the answer is out, where a run has one."""
    return bars(asked.choices, counts, right_choice(own_step(asked)) if asked.revealed and not asked.text else None)


def staged(asked: Asked, counts: Sequence[int]) -> list[Any]:
    """The teacher's screen: story, step, question, votes, plot, conclusion; the last two once the answer is out."""
    if asked.text:
        return [gr.skip(), gr.skip(), shown(asked), counted(asked, counts), gr.Plot(visible=False), CLOSED if asked.revealed else ""]
    found, own = stories()[asked.story], own_step(asked)
    steps = [(str(i + 1), i) for i in range(len(found.steps))]
    plot = drawn(own, recorded(), recorded_answers())[0] if asked.revealed else None
    picture = gr.Plot(plotted("class", enlarged(plot)), visible=True) if plot else gr.Plot(visible=False)
    conclusion = concluded(own, right_answer(asked), recorded(), recorded_answers())[2] if asked.revealed else ""
    return [found.name, gr.Radio(choices=steps, value=asked.step), shown(asked), counted(asked, counts), picture, conclusion]


class Classroom:
    """Handlers of the Class tab. `rooms` live in this process only."""

    def __init__(self, rooms: Rooms | None = None) -> None:
        self.rooms = rooms or Rooms()

    def open(self, address: Any, story: Any, step: Any) -> list[Any]:
        """A new room: teacher's room, invitation, timer, the teacher's screen."""
        asked, none = first_asked(story, step)
        code, key = self.rooms.open(*asked[:3])
        return [{"code": code, "key": key}, invitation(str(address), code), gr.Timer(active=True), *staged(asked, none)]

    def resume(self, address: Any, room: Any) -> list[Any]:
        """What a teacher's reloaded page shows: invitation, running timer and screen while the room lives."""
        if isinstance(room, dict) and room.get("code"):
            try:
                return [invitation(str(address), str(room["code"])), gr.Timer(active=True), *staged(*self.rooms.tally(str(room["code"])))]
            except InputError:
                pass  # the room has ended: the page starts without one
        return ["", gr.Timer(active=False), *[gr.skip()] * 6]

    def turn(self, room: Any, story: Any, step: Any, by: int = 0) -> list[Any]:
        """Another step for the class: the teacher's screen."""
        found, at = place(story, step)
        asked, counts = first_asked(found.name, min(len(found.steps) - 1, max(0, at + by)))
        if isinstance(room, dict) and room.get("code"):
            try:
                self.rooms.ask(str(room["code"]), str(room.get("key")), *asked[:3])
                asked, counts = self.rooms.tally(str(room["code"]))
            except InputError as error:
                screen = staged(asked, counts)
                return [*screen[:3], status(str(error), "error"), *screen[4:]]
        return staged(asked, counts)

    def pose(self, room: Any, text: Any, choices: Any) -> list[Any]:
        """A question that the teacher wrote, its choices one a line: the teacher's screen, a line."""
        if not (isinstance(room, dict) and room.get("code")):
            return [*[gr.skip()] * 6, status("Open a room first.", "error")]
        lines = tuple(filter(None, map(str.strip, str(choices or "").splitlines())))
        try:
            self.rooms.pose(str(room["code"]), str(room.get("key")), str(text or "").strip(), lines)
            return [*staged(*self.rooms.tally(str(room["code"]))), status("The class is asked.", "done")]
        except InputError as error:
            return [*[gr.skip()] * 6, status(str(error), "error")]

    def watch(self, room: Any) -> Any:
        """The votes now, for the teacher's screen."""
        if not (isinstance(room, dict) and room.get("code")):
            return gr.skip()
        try:
            return counted(*self.rooms.tally(str(room["code"])))
        except InputError as error:
            return status(str(error), "error")

    def reveal(self, room: Any, story: Any, step: Any) -> list[Any]:
        """The measured answer, which ends the voting: votes with the right one marked, plot, conclusion."""
        asked, counts = first_asked(story, step)
        if isinstance(room, dict) and room.get("code"):
            try:
                now = self.rooms.question(str(room["code"]))
                asked = now if now.text else asked
                self.rooms.reveal(str(room["code"]), str(room.get("key")), asked.story, asked.step)
                now, votes = self.rooms.tally(str(room["code"]))
                counts = votes if now[:2] == asked[:2] else counts
            except InputError:
                pass  # the room has ended; the answer is shown all the same
        return staged(asked._replace(revealed=True), counts)[3:]

    def join(self, code: Any, seen: Any = "") -> list[Any]:
        """What a student's page must change since it saw `seen` of a room: question, choices, line, what it has seen now, timer."""
        try:
            asked = self.rooms.question(str(code or ""))
        except InputError as error:
            return ["", gr.Radio(visible=False), status(str(error), "error") if code else "", "", gr.Timer(active=False)]
        where = f"{str(code).strip().upper()}:{asked.number}:"
        line, now = answer(asked) if asked.revealed else "", where + ("revealed" if asked.revealed else "open")
        if seen == now:
            return [gr.skip()] * 5
        if str(seen).startswith(where):
            return [gr.skip(), gr.Radio(interactive=False), line, now, gr.skip()]
        choices = [(name, named(asked, i)) for i, name in enumerate(asked.choices)]
        radio = gr.Radio(choices=choices, value=None, visible=True, interactive=not asked.revealed)
        return [shown(asked), radio, line, now, gr.Timer(active=True)]

    def enter(self, code: Any) -> list[Any]:
        """The same for whoever presses Join: an empty code gets a sentence, on a page that has just opened it gets none."""
        page = self.join(code)
        return page if str(code or "").strip() else [*page[:2], status(NO_CODE, "error"), *page[3:]]

    def follow(self, seen: Any) -> list[Any]:
        """The same for a student who has joined, every few seconds."""
        return self.join(str(seen).split(":")[0], seen)

    def vote(self, code: str, ticket: str, choice: str) -> str:
        """Counts a vote of a browser's ticket (16 to 64 hex digits) for a choice, "story:step:position" with both from 0; says what happened."""
        try:
            if not (isinstance(choice, str) and CHOICE.fullmatch(choice)):
                raise InputError("That is not one of the choices.")
            story, step, position = choice.split(":")
            return f"Voted: {self.rooms.vote(str(code), ticket, story, int(step), int(position))}. You can change it until the answer or the next question."
        except InputError as error:
            return str(error)

    def voted(self, seen: Any, ticket: Any, choice: Any) -> list[Any]:
        """The same for a student's page, as `join` does: a vote that did not count shows what the room asks now."""
        code = str(seen).split(":")[0]
        said = self.vote(code, ticket, choice)
        if said.startswith("Voted"):
            return [gr.skip(), gr.skip(), status(said, "done"), gr.skip(), gr.skip()]
        line = status(said, "error")
        asked, radio, below, *rest = self.join(code)
        return [asked, radio, line if below == line else line + below, *rest]


def first_asked(story: Any, step: Any) -> tuple[Asked, list[int]]:
    """(a step as it is first asked, no votes) of whatever a page names."""
    found, at = place(story, step)
    names = choices(found.steps[at].predict)
    return Asked(found.name, at, names), [0] * len(names)


def keys_script() -> str:
    """Arrow keys press Back and Next, r presses Reveal, Escape leaves the presenter's view, while it is on and nothing is being typed."""
    return """() => {
  if (window.presenterKeys) return; window.presenterKeys = true;
  document.addEventListener('keydown', event => {
    if (!document.body.classList.contains('presenting') || /^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'radio') return;
    const button = {ArrowRight: 'class-next', PageDown: 'class-next', ArrowLeft: 'class-back', PageUp: 'class-back', r: 'class-reveal'}[event.key];
    if (button) { event.preventDefault(); document.getElementById(button).click(); window.scrollTo(0, 0); }
    if (event.key === 'Escape') document.body.classList.remove('presenting');
  });
}"""
