"""A step of a walkthrough as an address names it, and what a reload of its page shows again."""

from __future__ import annotations

import json
from typing import Any

from explorer.learn.runs import recorded, recorded_answers
from explorer.ui.tabs.learn.handlers import Walk, ended, place, place_of, predicted, revealed


def step_of(name: str) -> tuple[str, int]:
    """(story, step from 0) as an address names it, "story:step" from 1; step 0 for what is no number."""
    story, _, step = name[:100].partition(":")
    return story, int(step[:4]) - 1 if step.isascii() and step.isdigit() else 0


def reloaded(walk: Walk, kept: Any, name: str, done: Any, right: Any = None, seen: Any = None) -> list[Any]:
    """`walk.show` of the step that an address names, with its answer where that was revealed. kept: what was revealed last, as JSON, "" for nothing:
    story, step, choice, amount, `moved`.
    """
    story, step = step_of(name)
    page = walk.show(story, step, done, right, seen)
    try:
        *where, choice, amount, moved = json.loads(kept or "[]")
    except (ValueError, TypeError):
        return page
    if where != [story, step] or ended(story, step):
        return page
    own = place(story, step)[0].steps[step]
    answer = revealed(own, predicted(own, choice, amount, moved == place_of(story, step)), recorded(), recorded_answers())
    return [*page[:3], page[3] | {"value": choice}, page[4] | {"value": amount}, *answer, *page[8:-1], moved]
