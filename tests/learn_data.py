"""What the tests of learning share: answers that are surely wrong, and a browser's state after some answers."""

from __future__ import annotations

import json

import app
from explorer.learn import progress
from explorer.learn.bank import questions
from explorer.learn.stories import stories
from explorer.ui.controls import Control
from explorer.ui.panel import Panel

CATALOGUE = json.loads((app.ASSETS / "methods.json").read_text())["methods"]
PANEL = Panel(fields=[Control(method["name"], field, None) for method in CATALOGUE for field in method["fields"]])
STEPS = [(story.name, at) for story in stories().values() for at in range(len(story.steps))]
NONSENSE = (None, "x", -1, 99, float("nan"), [], {}, [1, "2"], {"a": 1}, True)


def wrong_number(right: float) -> float:
    """A number that deserves less than half the score."""
    return 3 * right + 1 if right >= 0 else -right + 1


def practised(count: int = 12, score: float = 1.0) -> progress.State:
    """The progress after `count` answers of this score, to the first questions of the bank, on day 100."""
    state = progress.fresh()
    for question in list(questions().values())[:count]:
        state = progress.answered(state, question, score, 0.7, 100)
    return state
