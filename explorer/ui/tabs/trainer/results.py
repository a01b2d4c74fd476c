"""Results of the trainer as HTML: the end of a set, the sheet by area, and the chips and links beside an answer. Grades nothing."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from html import escape
from itertools import zip_longest
from typing import Any

from explorer.chips import chip, of_metrics, reachable
from explorer.learn import progress
from explorer.learn.bank import areas, questions
from explorer.learn.pose import Posed, grade, pose
from explorer.learn.runs import recorded
from explorer.records import Report
from explorer.ui.tabs.learn.handlers import titled

OWN = chip("measured", "counted from your own answers, in this browser", reached=False)
State = dict[str, Any]


def today() -> int:
    """Days since 1970, UTC."""
    return (datetime.datetime.now(datetime.UTC).date() - datetime.date(1970, 1, 1)).days


def see(target: str) -> str:
    """The link that shows it."""
    kind, _, name = target.partition(":")
    return (
        f"<a href='?tab=learn&amp;story={escape(name)}'>See it: the walkthrough</a>"
        if kind == "story"
        else f"<a href='?tab={escape(name)}'>See it: the {escape(titled(name))} tab</a>"
    )


def chips(posed: Posed, reports: Mapping[str, Report] | None = None) -> str:
    """The chip of a question's numbers: the runs that decide it, or arithmetic; none where the answer is no number. reports: by name, else as recorded."""
    question, known = posed.question, recorded() if reports is None else reports
    names = posed.graded_by or question.runs or (("run",) if question.runs_model else ())
    if found := [known[name] for name in names if name in known]:
        return of_metrics(found, (question.metric or "kld_mean", "bits_per_weight"))
    return chip("estimated", "arithmetic with the numbers of the question") if question.kind == "numeric" else ""


def finished(state: State) -> str:
    """The end of a set: its score, and every question with its right answer and why."""
    running = state["set"]
    rows = []
    for name, score, told in zip_longest(running["ids"], running["scores"], running.get("told", [])[: len(running["ids"])], fillvalue=""):
        posed = pose(questions()[name], running["seed"])
        verdict = grade(posed, None, recorded())
        right = escape(told) or f"{escape(verdict.right)} {chips(posed)}"  # what was told says itself where it was measured
        graded = "skipped" if score is None else f"{100 * (score or 0):.0f}% {'by you' if posed.question.kind == 'explain' else OWN}"
        rows.append(
            f"<tr><td>{graded}</td><td><b>{escape(posed.ask)}</b> {right}<br>"
            f"<span class='hint'>{escape(verdict.why)} "
            f"{see(posed.question.see)}</span></td></tr>"
        )
    scored = [score for score in running["scores"] if score is not None]
    skipped = f", {len(running['scores']) - len(scored)} skipped" if len(scored) < len(running["scores"]) else ""
    return f"<h2>{escape(running['title'])}: {sum(scored):.1f} of {len(rows)}{skipped}</h2><table class='sheet'>{reachable(''.join(rows))}</table>"


def sheet(state: State) -> str:
    """The result sheet: strengths and gaps by area, and the calibration of confidence."""
    own = state["progress"]
    rows = []
    for row in progress.sheet(own, areas()):
        if row["answers"]:
            bar = f"<progress max='1' value='{row['score']:.2f}' aria-label='score'></progress>"
            stated = f"{row['brier']:.2f}" if row["brier"] is not None else ""
            rows.append(
                f"<tr><th scope='row'>{escape(row['title'])}</th><td>{row['answers']}</td><td>{bar} {100 * row['score']:.0f}%</td><td>{stated}</td></tr>"
            )
        else:
            rows.append(f"<tr><th scope='row'>{escape(row['title'])}</th><td>0</td><td>not asked yet</td><td></td></tr>")
    counted = "".join(f"<th scope='col'>{name} {OWN}</th>" for name in ("answers", "score", "Brier"))
    head = f"<tr><th scope='col'>area</th>{counted}</tr>"
    waiting = len(progress.due(own, today()))
    return (
        f"<table class='sheet'>{reachable(head)}{''.join(rows)}</table>"
        f"<p class='hint'>Rating {own['rating']:.0f} (junior questions 1000, mid 1200, senior 1400), "
        f"{own['answers']} answers, {waiting} question{'s' if waiting != 1 else ''} due again. "
        "Brier: squared distance of your stated confidence from the outcome; 0 is best, always saying 50% gives 0.25. Kept in this browser only.</p>"
    )
