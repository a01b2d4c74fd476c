"""A sweep whose page is loaded anew goes on, from what is stored. What Cancel stopped is only told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from explorer.records import InputError
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.status import status
from explorer.ui.tab import settings
from explorer.ui.tabs.tradeoffs.handlers import Points

HOW = {"reload": "going on after a reload: ", "restart": "going on after a restart of the server: "}
Handler = Callable[..., Iterator[list[Any]]]


def noted(handlers: Points, what: str = "") -> Handler:
    """`Points.sweep` with one more output: what was asked for and how many configurations are measured, as JSON. A text of the visitor's own is no part of
    it. what: words before each line of its progress.
    """

    @wraps(handlers.sweep)
    def sweeping(*values: Any) -> Iterator[list[Any]]:
        model, methods, bits, groups, _, _, _, *options = values
        given = {name: value for name, value in zip(RUN_OPTIONS, options, strict=True) if name != "text"}
        asked = {"model": model, "methods": methods, "bits": bits, "groups": groups, "options": given, "done": 0}
        updates = handlers.sweep(*values, what=what)
        try:
            for update in updates:
                drawn = any(part != gr.skip() for part in update[1:])
                asked["done"] += drawn
                yield [*update, json.dumps(asked) if drawn or not asked["done"] else gr.skip()]
        finally:
            updates.close()

    return sweeping


def of(text: str, methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> dict[str, Any]:
    """What `noted` told, with the choices that there are; {} for anything else."""
    found = settings(text)
    if not {"model", "methods", "bits", "groups", "options", "done"} <= found.keys() or not isinstance(found["options"], dict):
        return {}
    known = {"methods": methods, "bits": bits, "groups": groups}
    given = {name: found[name][:100] if isinstance(found[name], list) else [] for name in known}
    chosen = {name: list(dict.fromkeys(value for value in given[name] if value in offered)) for name, offered in known.items()}
    options = {name: found["options"].get(name) for name in RUN_OPTIONS}
    done = found["done"] if isinstance(found["done"], int) else 0
    return chosen | {"model": str(found["model"])[:200], "options": options, "done": done} if all(chosen.values()) else {}


def came(handlers: Points, text: str, model: str, methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> str:
    """The line about these choices as `Points.count` has it, with how far this tab's last sweep of them came; text: as `noted` tells it."""
    line, last = handlers.count(model, methods, bits, groups), of(text, methods or [], bits or [], groups or [])
    wanted = {"model": model, "methods": methods, "bits": bits, "groups": groups}
    told = settings(text)
    if not last or not last["done"] or any(sorted(map(str, told[name])) != sorted(map(str, value)) for name, value in wanted.items()):
        return line
    try:
        every = len(handlers.configurations(methods, bits, groups))
    except InputError:
        return line
    rest = "they come back at once" if last["done"] >= every else "Run sweep shows them at once and goes on with the rest"
    return status(f"{last['done']} of {every} configurations of {model} are measured and stored: {rest}.")


def gone_on(handlers: Points, offered: Sequence[Sequence[Any]]) -> Handler:
    """The handler of a page that was loaded anew: (told, held, view, quality) -> what `noted` yields, then an update for methods, bits and groups, of which
    these are offered.
    """

    def going(told: str, held: str, view: str, quality: str) -> Iterator[list[Any]]:
        how, _, text = told.partition(" ")
        last, same = of(text, *offered), [gr.skip()] * 6
        if not last:
            return
        chosen = [last["methods"], last["bits"], last["groups"]]
        yield [came(handlers, text, last["model"], *chosen), *same, text, *(gr.update(value=value) for value in chosen)]
        if how in HOW and "pasted" not in last["options"].values():
            options = (last["options"][name] for name in RUN_OPTIONS)
            for update in noted(handlers, HOW[how])(last["model"], *chosen, held, view, quality, *options):
                yield [*update, *[gr.skip()] * 3]

    return going
