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
from explorer.learn.room import Rooms
from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Predict, Step
from explorer.records import InputError
from explorer.ui.frame import plotted
from explorer.ui.learn import drawn, place, revealed
from explorer.ui.page import status

BINS = 5  # choices that a number to be predicted is offered as
ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,120}(/[\w./-]{0,120})?", re.ASCII)


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
    shape = plot["layout"] | {"font": plot["layout"].get("font", {}) | {"size": 18}, "height": max(420, plot["layout"].get("height", 0))}
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


class Classroom:
    """Handlers of the Class tab. `rooms` live in this process only."""

    def __init__(self, rooms: Rooms | None = None) -> None:
        self.rooms = rooms or Rooms()

    def open(self, address: Any, story: Any, step: Any) -> list[Any]:
        """A new room: teacher's room, invitation, question, votes, timer."""
        found, at = place(story, step)
        names = choices(found.steps[at].predict)
        code, key = self.rooms.open(found.name, at, names)
        return [{"code": code, "key": key}, invitation(str(address), code), question(found.name, at), bars(names, [0] * len(names)), gr.Timer(active=True)]

    def resume(self, address: Any, room: Any) -> list[Any]:
        """What a teacher's reloaded page shows: the invitation and the running timer while the room lives."""
        if isinstance(room, dict) and room.get("code"):
            try:
                self.rooms.tally(str(room["code"]))
                return [invitation(str(address), str(room["code"])), gr.Timer(active=True)]
            except InputError:
                pass  # the room has ended: the page starts without one
        return ["", gr.Timer(active=False)]

    def turn(self, room: Any, story: Any, step: Any, by: int = 0) -> list[Any]:
        """Another step for the class: story, step, question, votes, plot, conclusion."""
        found, at = place(story, step)
        at = min(len(found.steps) - 1, max(0, at + by))
        names = choices(found.steps[at].predict)
        shown = bars(names, [0] * len(names))
        if isinstance(room, dict) and room.get("code"):
            try:
                self.rooms.ask(str(room["code"]), str(room.get("key")), found.name, at, names)
                shown = bars(*self.rooms.tally(str(room["code"])))
            except InputError as error:
                shown = status(str(error), "error")
        steps = [(str(i + 1), i) for i in range(len(found.steps))]
        return [found.name, gr.Radio(choices=steps, value=at), question(found.name, at), shown, gr.Plot(visible=False), ""]

    def watch(self, room: Any) -> Any:
        """The votes now, for the teacher's screen."""
        if not (isinstance(room, dict) and room.get("code")):
            return gr.skip()
        try:
            return bars(*self.rooms.tally(str(room["code"])))
        except InputError as error:
            return status(str(error), "error")

    def reveal(self, room: Any, story: Any, step: Any) -> list[Any]:
        """The measured answer: votes with the right one marked, plot, conclusion, timer stopped."""
        found, at = place(story, step)
        own = found.steps[at]
        names, counts = choices(own.predict), [0] * len(choices(own.predict))
        if isinstance(room, dict) and room.get("code"):
            try:
                names, counts = self.rooms.tally(str(room["code"]))
            except InputError:
                pass  # the room has ended; the answer is shown all the same
        plot, _ = drawn(own, recorded(), recorded_answers())
        shown = gr.Plot(plotted("class", enlarged(plot)), visible=True) if plot else gr.Plot(visible=False)
        return [bars(names, counts, right_choice(own)), shown, revealed(own, None, recorded(), recorded_answers())[2]]

    def join(self, code: Any) -> list[Any]:
        """What a room asks now: question, choices, status."""
        try:
            story, step, names = self.rooms.question(str(code or ""))
        except InputError as error:
            return ["", gr.Radio(visible=False), status(str(error), "error") if code else ""]
        return [question(story, step), gr.Radio(choices=[(name, i) for i, name in enumerate(names)], value=None, visible=True), ""]

    def vote(self, code: str, ticket: str, choice: int) -> str:
        """Counts a vote of a browser's ticket (16 to 64 hex digits) for a choice by its position; says what happened."""
        try:
            return f"Voted: {self.rooms.vote(str(code), ticket, choice)}. You can change it until the next question."
        except InputError as error:
            return str(error)

    def voted(self, code: Any, ticket: Any, choice: Any) -> str:
        """The same as a status line."""
        said = self.vote(code, ticket, choice)
        return status(said, "done" if said.startswith("Voted") else "error")


def keys_script() -> str:
    """Arrow keys press Back and Next, r presses Reveal, Escape leaves the presenter's view, while it is on and nothing is being typed."""
    return """() => {
  if (window.presenterKeys) return; window.presenterKeys = true;
  document.addEventListener('keydown', event => {
    if (!document.body.classList.contains('presenting') || /^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'radio') return;
    const button = {ArrowRight: 'class-next', PageDown: 'class-next', ArrowLeft: 'class-back', PageUp: 'class-back', r: 'class-reveal'}[event.key];
    if (button) { event.preventDefault(); document.getElementById(button).click(); }
    if (event.key === 'Escape') document.body.classList.remove('presenting');
  });
}"""
