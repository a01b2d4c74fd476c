"""Interviewer mode on the page: cards without explanations, answers with runs as evidence, a transcript to download. State lives in the browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from explorer.bugs import BUGS
from explorer.learn.evidence import bears
from explorer.learn.interview import BROKEN, TEXT_LIMIT, cards, entry, markdown
from explorer.records import Report
from explorer.ui.status import failure, many, status
from explorer.ui.tab import Shell
from explorer.ui.tabs.planner.handlers import Inputs, Plans
from explorer.ui.tabs.trainer.diagnosis import Diagnosis
from explorer.ui.tabs.trainer.results import see

ENTRIES, SIZE = 30, 40_000  # answers of a transcript, and its bytes as JSON: what a request may hold


def shown_card(name: str) -> str:
    """A card: what is asked and what would be evidence, nothing that helps."""
    card = cards()[name]
    return (
        f"<div class='question'><p class='where'>{escape(card.level)}</p><p class='ask'>{escape(card.ask)}</p><p class='hint'>{escape(card.evidence)}</p></div>"
    )


def checked(notes: Any) -> list[dict[str, Any]]:
    """The transcript as a browser sent it; [] for anything that is none."""
    wanted = {"card": str, "answer": str, "confidence": int | float, "met": list, "evidence": list}
    if not isinstance(notes, list) or len(notes) > ENTRIES:
        return []
    for note in notes:
        if not isinstance(note, dict) or any(not isinstance(note.get(key), kind) for key, kind in wanted.items()) or note["card"] not in cards():
            return []
        runs = note["evidence"]
        if (
            len(note["answer"]) > TEXT_LIMIT
            or len(runs) > 5
            or not isinstance(note.get("planned", ""), str)
            or len(note.get("planned", "")) > TEXT_LIMIT
            or any(not isinstance(r, dict) or not {"run", "name", "model", "device"} <= r.keys() for r in runs)
        ):
            return []
        if (note["card"] == BROKEN) != ("diagnosis" in note) or ("diagnosis" in note and not diagnosis_is_one(note["diagnosis"])):
            return []
    return notes


def diagnosis_is_one(found: Any) -> bool:
    """Whether a browser's graded diagnosis has what the transcript prints."""
    if not isinstance(found, dict) or any(found.get(key) not in list(BUGS) for key in ("planted", "named", "step")):
        return False
    texts = [found.get("setup"), found.get("run"), *(found["said"] if isinstance(found.get("said"), list) else [None])]
    return all(isinstance(text, str) for text in texts) and all(isinstance(found.get(key), int | float) for key in ("score", "brier"))


def page(notes: list[dict[str, Any]]) -> str:
    """The transcript with its two downloads."""
    if not notes:
        return ""
    text, data = markdown(notes), json.dumps([{"ask": cards()[note["card"]].ask} | note for note in notes], indent=1)
    links = " · ".join(
        f"<a class='handout' download='transcript.{end}' href='data:{kind};charset=utf-8,{quote(body)}'>{title}</a>"
        for end, kind, title, body in (("md", "text/markdown", "Markdown", text), ("json", "application/json", "JSON", data))
    )
    stated = [note["diagnosis"]["brier"] for note in notes if "diagnosis" in note]
    mean = f" Mean Brier score of {len(stated)} diagnosed: {sum(stated) / len(stated):.3f}; always saying 50% gives 0.25." if stated else ""
    last = cards()[notes[-1]["card"]]
    return f"<p>{len(notes)} on record. Download as {links}.{mean} {see(last.see)}</p><pre class='transcript'>{escape(text)}</pre>"


def weighed(card: str, runs: Sequence[Report], plan: str, parameters: float) -> str:
    """What is said of the evidence: whether any of it bears on the card. parameters: of the planned model."""
    wanted = cards()[card].evidence
    if not runs and not plan:
        return f"On record without evidence. What the card asks for: {wanted}"
    if not bears(card, runs, parameters):
        return f"On record, but nothing attached bears on this card. What it asks for: {wanted}"
    named = [many(len(runs), "run")] * bool(runs) + ["the Planner's answer"] * bool(plan)
    return f"On record with {' and '.join(named)} as evidence."


class Interviewer:
    """Handlers of interviewer mode over the shell."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.diagnosis = shell, Diagnosis(shell)

    def choose(self, card: Any) -> list[Any]:
        """Another card: its text, an empty answer, no list, and the broken model's part where the card is about one."""
        name = card if card in cards() else next(iter(cards()))
        return [shown_card(name), "", gr.update(visible=False), gr.update(visible=name == BROKEN)]

    def record(
        self, notes: Any, card: Any, answer: Any, sure: Any, keys: Any, ticket: Any = "", named: Any = None, step: Any = None, plans: Any = False, *asked: Any
    ) -> list[Any]:
        """Puts an answer on record with what is attached as evidence: notes, the interviewer's list, the transcript, a status line.

        ticket, named, step: of a broken model, whose diagnosis is graded. plans: whether the Planner's answer to `asked`, the values of its Inputs, is
        evidence as well. The same answer to the same card again takes the place of the last one.
        """
        if card not in cards():
            return [gr.skip(), gr.skip(), gr.skip(), status("Choose a card first.", "error")]
        if card != BROKEN and not str(answer or "").strip():
            return [gr.skip(), gr.skip(), gr.skip(), status("Write an answer first.", "error")]
        attached = self.shell.shelf.pick([key for key in keys if isinstance(key, str)] if isinstance(keys, list) else [])
        runs = [r for r in attached if not r.experiment.spec.is_baseline and not r.missing]
        confidence = min(1.0, max(0.0, float(sure) / 100)) if isinstance(sure, int | float) and sure == sure else 0.5
        known, found = checked(notes), None
        try:
            plan, parameters = Plans(self.shell).told(Inputs(*asked)) if plans is True else ("", 0.0)
            if card == BROKEN:
                found = self.diagnosis.grade(ticket, named, step, confidence, runs)
        except Exception as error:  # the outermost boundary: whoever answers gets a sentence
            return [gr.skip(), gr.skip(), gr.skip(), failure(error)]
        new = entry(cards()[card], str(answer or ""), confidence, [], runs, found, plan)
        last = known[-1] if known and not found and (known[-1]["card"], known[-1]["answer"]) == (card, new["answer"]) else None
        if last is not None:
            known, new = known[:-1], new | {"met": last["met"]}
        told = "This answer is on record already." if new == last else weighed(card, runs, plan, parameters)
        if found:
            told = f"{100 * found['score']:.0f}%, Brier score {found['brier']:.2f}. {' '.join(found['said'])}"
        new_notes = [*known, new][-ENTRIES:]
        while len(new_notes) > 1 and len(json.dumps(new_notes).encode()) > SIZE:
            new_notes = new_notes[1:]
        points = [(point, i) for i, point in enumerate(cards()[card].points)]
        return [new_notes, gr.update(choices=points, value=new["met"], visible=True), page(new_notes), status(told, "done")]

    def tick(self, notes: Any, met: Any) -> list[Any]:
        """Notes what the last answer covered."""
        known = checked(notes)
        if not known or not isinstance(met, list):
            return [gr.skip(), gr.skip()]
        ticked = sorted({i for i in met if isinstance(i, int) and 0 <= i < len(cards()[known[-1]["card"]].points)})
        new = [*known[:-1], known[-1] | {"met": ticked}]
        return [new, page(new)]

    def show(self, notes: Any) -> str:
        """The transcript of a reloaded page."""
        return page(checked(notes))
