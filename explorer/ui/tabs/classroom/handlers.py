"""Teaching a class: a room with a code and a QR, one step at a time in large type, votes that stay hidden until the measured answer is out."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from explorer.learn.bank import Question, questions
from explorer.learn.pose import grade, pose
from explorer.learn.room import Asked, Rooms
from explorer.learn.runs import recorded
from explorer.records import InputError
from explorer.ui.status import status
from explorer.ui.tabs.classroom.stage import answer, counted, first_asked, invitation, named, shown, staged
from explorer.ui.tabs.learn.handlers import place
from explorer.ui.visitor import address, session

NO_CODE = "Enter the room's code first: five letters, on the screen of whoever leads the class."
VOTED = "Voted: {}. You can change it until the answer or the next question."
CHOICE = re.compile(r"[\w-]{1,60}:\d{1,3}:\d{1,3}", re.ASCII)


def key_of(room: Any) -> tuple[str, str]:
    """(code, key) of the room that a teacher's browser keeps, ("", "") before it opened one."""
    return (str(room["code"]), str(room.get("key"))) if isinstance(room, dict) and room.get("code") else ("", "")


class Classroom:
    """Handlers of the Class tab. `rooms` live in this process only."""

    def __init__(self, rooms: Rooms | None = None) -> None:
        self.rooms = rooms or Rooms()

    def open(self, page: Any, story: Any, step: Any) -> list[Any]:
        """A new room: teacher's room, invitation, or why there is none, timer, the teacher's screen."""
        asked, none = first_asked(story, step)
        try:
            code, key = self.rooms.open(*asked[:3], address())
        except InputError as error:
            return [gr.skip(), status(str(error), "error"), *[gr.skip()] * 7]
        return [{"code": code, "key": key}, invitation(str(page), code), gr.Timer(active=True), *staged(asked, none)]

    def resume(self, address: Any, room: Any) -> list[Any]:
        """What a teacher's reloaded page shows: invitation, running timer, screen and the teacher's side unfolded while the room lives; else that it has
        ended.
        """
        code, _ = key_of(room)
        try:
            return [invitation(str(address), code), gr.Timer(active=True), *staged(*self.rooms.tally(code)), gr.Accordion(open=True)]
        except InputError as error:
            if not code:  # none was opened: the page starts without one
                return ["", gr.Timer(active=False), *[gr.skip()] * 7]
            return [status(str(error), "error"), gr.Timer(active=False), *[gr.skip()] * 6, gr.Accordion(open=True)]

    def turn(self, room: Any, story: Any, step: Any, by: int = 0) -> list[Any]:
        """Another step for the class, as it was left: the teacher's screen. Back from a question that is no step leads to the step before it."""
        (found, at), (code, key) = place(story, step), key_of(room)
        try:
            at += 0 if code and by < 0 and self.rooms.question(code).text else by
            asked, counts = first_asked(found.name, min(len(found.steps) - 1, max(0, at)))
            if not code:
                return staged(asked, counts)
            self.rooms.ask(code, key, *asked[:3])
            return staged(*self.rooms.tally(code))
        except InputError as error:
            return refused(story, step, error)

    def again(self, room: Any, story: Any, step: Any) -> list[Any]:
        """The open question anew, without its votes: the teacher's screen."""
        code, key = key_of(room)
        try:
            self.rooms.again(code, key)
            return staged(*self.rooms.tally(code))
        except InputError as error:
            return refused(story, step, error) if code else staged(*first_asked(story, step))

    def pose(self, room: Any, text: Any, choices: Any, right: Any = None) -> list[Any]:
        """A question that the teacher wrote, its choices one a line, right: which of them is right, from 1, None for none: the teacher's screen, a line."""
        asked, lines = str(text or "").strip(), tuple(filter(None, map(str.strip, str(choices or "").splitlines())))
        return self._pose(room, asked, lines, right - 1 if isinstance(right, int) and not isinstance(right, bool) and right > 0 else None)

    def borrow(self, room: Any, name: Any) -> list[Any]:
        """A question of the trainer's bank: the teacher's screen, a line."""
        if name not in borrowed():
            return [*[gr.skip()] * 6, status("Choose a question of the trainer's first.", "error")]
        found = pose(borrowed()[name], key_of(room)[0])
        right = next(place for place, i in enumerate(found.order) if found.question.options[i].right)
        why = f"{grade(found, right, recorded()).why} Source: {found.question.source}."
        return self._pose(room, found.ask, tuple(found.shown()), right, why, True)

    def _pose(self, room: Any, *asked: Any) -> list[Any]:
        code, key = key_of(room)
        if not code:
            return [*[gr.skip()] * 6, status("Open a room first.", "error")]
        try:
            self.rooms.pose(code, key, *asked)
            return [*staged(*self.rooms.tally(code)), status("The class is asked.", "done")]
        except InputError as error:
            return [*[gr.skip()] * 6, status(str(error), "error")]

    def watch(self, room: Any) -> Any:
        """How many voted by now, for the teacher's screen."""
        code, _ = key_of(room)
        try:
            return counted(*self.rooms.tally(code))
        except InputError as error:
            return status(str(error), "error") if code else gr.skip()

    def reveal(self, room: Any, story: Any, step: Any) -> list[Any]:
        """The measured answer, which ends the voting: votes with the right one marked, plot, conclusion."""
        (asked, counts), (code, key) = first_asked(story, step), key_of(room)
        try:
            now = self.rooms.question(code)
            asked = now if now.text else asked
            self.rooms.reveal(code, key, asked.story, asked.step)
            now, votes, _ = self.rooms.tally(code)
            counts = votes if now[:2] == asked[:2] else counts
        except InputError:
            pass  # none was opened, or it has ended; the answer is shown all the same
        return staged(asked._replace(revealed=True), counts)[3:]

    def join(self, code: Any, seen: Any = "", ticket: Any = "") -> list[Any]:
        """What a student's page must change since it saw `seen` of a room: question, choices, line, what it has seen now, timer."""
        try:
            asked, chosen = self.rooms.look(str(code or ""), ticket, session())
        except InputError as error:
            return ["", gr.Radio(visible=False), status(str(error), "error") if code else "", "", gr.Timer(active=False)]
        where = f"{str(code).strip().upper()}:{asked.number}:"
        now = where + ("revealed" if asked.revealed else "open")
        if seen == now:
            return [gr.skip()] * 5
        line = self.told(code, asked, chosen)
        if str(seen).startswith(where):
            return [gr.skip(), gr.Radio(interactive=False), line, now, gr.skip()]
        choices = [(name, named(asked, i)) for i, name in enumerate(asked.choices)]
        own = None if chosen is None else named(asked, chosen)
        return [shown(asked), gr.Radio(choices=choices, value=own, visible=True, interactive=not asked.revealed), line, now, gr.Timer(active=True)]

    def told(self, code: Any, asked: Asked, chosen: int | None) -> str:
        """What stands below a student's choices: what this phone has voted, then the answer with the votes of the class."""
        if not asked.revealed:
            return "" if chosen is None else status(VOTED.format(asked.choices[chosen]), "done")
        try:
            now, votes, _ = self.rooms.tally(str(code))
        except InputError:  # the room has ended since
            return answer(asked, chosen)
        return answer(asked, chosen) + (f"<h3>How the class voted</h3>{counted(asked, votes)}" if now == asked else "")

    def enter(self, code: Any, ticket: Any = "") -> list[Any]:
        """The same for whoever presses Join: an empty code gets a sentence, on a page that has just opened it gets none."""
        page = self.join(code, "", ticket)
        return page if str(code or "").strip() else [*page[:2], status(NO_CODE, "error"), *page[3:]]

    def follow(self, seen: Any, ticket: Any = "") -> list[Any]:
        """The same for a student who has joined, every few seconds."""
        return self.join(str(seen).split(":")[0], seen, ticket)

    def vote(self, code: str, ticket: str, choice: str) -> str:
        """Counts a vote of a browser's ticket (16 to 64 hex digits) for a choice, "story:step:position" with both from 0; says what happened."""
        try:
            if not (isinstance(choice, str) and CHOICE.fullmatch(choice)):
                raise InputError("That is not one of the choices.")
            story, step, position = choice.split(":")
            chosen = self.rooms.vote(str(code), ticket, story, int(step), int(position), address())
            return VOTED.format(chosen)
        except InputError as error:
            return str(error)

    def voted(self, seen: Any, ticket: Any, choice: Any) -> list[Any]:
        """The same for a student's page, as `join` does: a vote that did not count shows what the room asks now."""
        code = str(seen).split(":")[0]
        said = self.vote(code, ticket, choice)
        if said.startswith("Voted"):
            return [gr.skip(), gr.skip(), status(said, "done"), gr.skip(), gr.skip()]
        line = status(said, "error")
        asked, radio, below, *rest = self.join(code, "", ticket)
        return [asked, radio, line if below == line else line + below, *rest]


def refused(story: Any, step: Any, error: InputError) -> list[Any]:
    """A step on the teacher's screen with a sentence in place of the votes."""
    screen = staged(*first_asked(story, step))
    return [*screen[:3], status(str(error), "error"), *screen[4:]]


def borrowed() -> dict[str, Question]:
    """Id -> Question of the trainer's bank that a class can vote on."""
    return {name: found for name, found in questions().items() if found.kind == "choice"}


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
