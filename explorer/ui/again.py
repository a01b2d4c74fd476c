"""A run that is on when its page is loaded anew: this tab of the browser keeps what was asked for, as a link, and the page that takes its place goes on with
it, from what is stored. A text of the visitor's own is kept nowhere, and neither is what was cancelled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from explorer.link import LONGEST, OPTIONS, completed, fields_of, parse
from explorer.ui.cancel import Cancel
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.share import control_updates
from explorer.ui.status import status

ANEW, RESTART = "The page was loaded anew while a run was on", "The server was restarted while a run was on"
GOES_ON = "{}: it goes on from what is stored."
CUT = "{}, which stopped it. {} to go on: what it had measured is stored."
RESTARTED = "The server was restarted, and this page opened again from its address. Measured results are kept; press Run again for what was not finished."


def kept(page: Page, handler: Callable[..., Iterator[list[Any]]]) -> Callable[..., Iterator[list[Any]]]:
    """The handler of a run with one more output: what its session has going, as JSON, "" for nothing."""

    @wraps(handler)
    def running(*values: Any) -> Iterator[list[Any]]:
        updates = handler(*values)
        try:
            for update in updates:
                links = page.runs.links()
                yield [*update, json.dumps(links) if links else ""]
        finally:
            updates.close()

    return running


def gone_on(page: Page, told: str, keys: list[str], layer: str | None, active: str, *own: Any) -> Iterator[list[Any]]:
    """Yields what `Page.run` does, and an update for each of the shell's controls, which show what goes on where the same page was loaded anew.

    told: "reload", "restart" of the server, or how else the page came to be, and the link of a `SessionRun`.
    """
    how, _, link = told.partition(" ")
    what = RESTART if how == "restart" else ANEW
    shell, wanted = page.shell, parse(parse_qsl(link), page.shell.catalogue, [])
    untouched, fields = [gr.skip()] * len(shell.controls), fields_of(wanted.method, shell.catalogue)
    same = [gr.skip()] * (2 + len(shell.outputs()))
    if wanted.wrong or fields is None:
        press = "Your text is kept nowhere; paste it again and press Run" if "pasted" in link else "Press Run"
        yield [status(CUT.format(what, press)), *same, *untouched]
        return
    whole = replace(wanted, params=completed(fields, wanted.params), options=OPTIONS | wanted.options)
    yield [status(GOES_ON.format(what), "busy"), *same, *(control_updates(page, whole) if how in ("reload", "restart") else untouched)]
    asked = whole.model, whole.method, whole.params, {name: whole.options.get(name) for name in RUN_OPTIONS}
    for update in page.measured(keys, layer, active, asked, own, again=True):
        yield [*update, *untouched]


def boxes() -> list[Any]:
    """Lays out the hidden boxes that `wire` connects: what is going, and what a page that was loaded anew goes on with."""
    return [gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden", max_length=4 * LONGEST, elem_id="go-on")]


def wire(page: Page, stop: Cancel, hidden: list[Any], loaded: Any) -> None:
    """Connects the hidden boxes, see assets/address.js. loaded: the event that read the page's link."""
    shell, (going, told) = page.shell, hidden
    going.change(None, going, None, js="(links) => { window.going = links; }", api_visibility="private")
    shown = [shell.compared, shell.layer]
    values = [told, *shown, shell.active, *shell.inputs()]
    outputs = [shell.status, *shown, *shell.outputs(), *shell.controls, going]
    stop.stops(told.change, kept(page, partial(gone_on, page)), values, outputs, concurrency_limit=64)
    said = f"(line) => window.goOn?.(line, {json.dumps(status(RESTARTED))}) ?? line"
    loaded.then(None, shell.status, shell.status, js=said, api_visibility="private")
