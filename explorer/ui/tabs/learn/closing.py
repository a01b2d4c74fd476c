"""The end of a walkthrough: how the predictions went, what was concluded, and where to go on, as HTML. Pure functions of a browser's notes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from explorer import link
from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Story, conclude, stories
from explorer.records import Report
from explorer.ui.status import many


def closing(
    story: Story, done: Collection[int], right: Collection[int], seen: Collection[int], catalogue: Sequence[dict[str, Any]], titles: dict[str, str]
) -> str:
    """The closing card. Positions of steps: done, that were predicted; right, predicted right at first; seen, revealed before any prediction. titles: of
    the tabs.
    """
    every = set(range(len(story.steps)))
    shown = every & set(seen)
    known = every & set(done) - shown
    rest = len(every - known - shown)
    said = [f"{len(known & set(right))} of {many(len(known), 'prediction')} right" if known else "You predicted nothing here"]
    said += [f"{many(len(shown), 'step')} revealed without a prediction"] if shown else []
    said += [f"{many(rest, 'step')} not predicted"] if rest and (known or shown) else []
    rows = "".join(f"<li><b>{escape(step.title)}</b> {_row(story, at, at in known, at in shown)}</li>" for at, step in enumerate(story.steps))
    names = list(stories())
    following = stories()[names[(names.index(story.name) + 1) % len(names)]]
    onward = f"<a href='?tab=learn&amp;story={escape(following.name)}'>{escape(following.title)}</a>"
    return (
        f"<div class='story'><p class='where'>{escape(story.title)} · the end</p><h2>{'; '.join(said)}.</h2><ol>{rows}</ol>"
        f"<p><b>What to try next.</b> {_tab(story, catalogue, titles)}. The next walkthrough: {onward}.</p></div>"
    )


def _row(story: Story, at: int, known: bool, shown: bool) -> str:
    """What was concluded of a step once it was revealed; else the link to it."""
    if not known and not shown:
        return f"<a href='?tab=learn&amp;story={escape(story.name)}&amp;step={at + 1}'>Predict it</a>"
    text = escape(conclude(story.steps[at], recorded(), recorded_answers()).text)
    return text if known else f"<i>Revealed without a prediction.</i> {text}"


def _tab(story: Story, catalogue: Sequence[dict[str, Any]], titles: dict[str, str]) -> str:
    """The link to the story's tab, with the last configuration that it ran."""
    run = last_run(story)
    if run is None:
        return f"Go on in <a href='?tab={escape(story.see)}'>{escape(titles[story.see])}</a>"
    spec = run.experiment.spec
    query = link.query(story.see, "", "", spec, {"kv_bits": spec.kv_bits, "head_bits": spec.head_bits}, [], catalogue)
    return f"Go on in <a href='?{escape(query)}'>{escape(titles[story.see])}</a>, with {escape(run.name)} in the controls"


def last_run(story: Story) -> Report | None:
    """The last quantized run of a story."""
    runs = [recorded()[name] for step in story.steps for name in step.runs]
    return next((run for run in reversed(runs) if not run.experiment.spec.is_baseline), None)
