"""The address bar carries the page's link, so that a reload opens the same page: asked for once the page has been left alone for a moment, see
assets/address.js. A text of the visitor's own, and what only a new measurement could show, are never part of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from explorer.link import OPTIONS, query
from explorer.records import QuantSpec, Report
from explorer.ui.page import Page
from explorer.ui.session import keys_of, specs_by_place
from explorer.ui.share import own_of, panel_of
from explorer.ui.tab import QUIET, tabs


def address_of(page: Page, keys: list[str], layer: str | None, active: str, *values: Any) -> str:
    """The query string of the page as it stands, "" for a page as it starts. Values: as `share.link_of` takes them.

    It names the model, texts and calibration of the reports shown, not what waits for Run, so that a reload finds them and measures nothing, unless
    the name means a newer model by then.
    """
    shell, shelf = page.shell, page.shell.shelf
    model, spec, options = panel_of(page, values)
    reports, own = shelf.pick(keys), own_of(page, active, values, written=False)
    shown = specs_by_place(reports) or [QuantSpec("none")]
    if keys_of(reports) == keys_of(shelf.first()):
        shown = []
    elif not all(model_is(r, model) and shelf.known(r.experiment.model.name, r.experiment.spec, options) for r in reports):
        model, options = reports[-1].experiment.model.name, options | circumstances(reports[-1])
        shown = [one if one and shelf.known(model, one, options) else None for one in shown]
    if "pasted" in (options["evaluation"], options["calibration"]):
        shown = []
    usual = {"layer": shell.layer.value, "model": shell.models[0], "tab": tabs()[0].name}
    told = {"layer": layer or "", "model": model, "tab": active}
    told = {name: "" if value == usual[name] else value for name, value in told.items()}
    made = query(told["tab"], told["layer"], told["model"], spec, options, shown, shell.catalogue, own)
    return "" if made == f"method={shell.panel.method.value}" else f"?{made}"


def model_is(report: Report, asked: str) -> bool:
    """Whether a report is of the model of this name, with or without a revision."""
    return report.experiment.model.name in (asked, asked.split("@")[0])


def circumstances(report: Report) -> dict[str, Any]:
    """The options of a run that are not its spec's."""
    read = report.experiment.calibration
    found = {"evaluation": report.experiment.evaluation.source, "calibration": read.source, "seed": read.seed}
    return {name: OPTIONS[name] for name in ("evaluation", "calibration", "sequences", "seed")} | found | {"sequences": read.tokens // max(1, read.length)}


def boxes() -> list[Any]:
    """Lays out the hidden boxes that `wire` connects; first on the page, as all that every click goes through."""
    return [gr.Textbox("", visible="hidden", elem_id=f"address-{name}") for name in ("asked", "state", "made")]


def wire(page: Page, hidden: list[Any]) -> None:
    """Connects the hidden boxes.

    The script asks by filling the first box. The second takes the page's state as text, in the browser: only when that is new is the server asked.
    """
    shell, (asked, state, made) = page.shell, hidden
    values = [shell.compared, shell.layer, shell.active, *shell.controls, *(part for parts in shell.linked.values() for part in parts.values())]
    asked.change(None, values, state, js="(...values) => JSON.stringify(values)", api_visibility="private")
    state.change(partial(address_of, page), values, made, queue=False, **QUIET)
    made.change(None, made, None, js="(query) => window.carry(query)", api_visibility="private")
