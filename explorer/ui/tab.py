"""Tab: one view of the page, one file or folder in explorer/ui/tabs. The Shell is what all of them share: runner, shelf, the compared reports, the layer.

A tab builds its components once and gives back a View. `render` is called when the tab is opened, when the compared reports or the layer change
while it is open, and after a run; what a tab's own buttons and sliders do, it wires itself. Nothing here holds the state of a session.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import gradio as gr

from explorer.figures import short_layer
from explorer.records import Event, Report
from explorer.ui.kept import Sealed
from explorer.ui.panel import Panel
from explorer.ui.session import Shelf, seats
from explorer.wide import layer_names

# What a mark or a button may name, "kind:key": a layer to show everywhere, a report to open or to compare, one whose batch to sweep or whose model to save;
# and the step of a walkthrough, "story:step", that Back and Forward lead to.
PICKS = ("layer", "report", "compare", "batch", "save", "step")
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of handlers: no veil over what they fill, no place in the API
SHARED = 100  # drawn pages of a tab that are kept for further visitors


class Runner(Protocol):
    """What the page needs of a runner; closing a generator cancels."""

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]: ...

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]: ...


@dataclass
class View:
    """outputs: components that `render(reports, layer, *values)` gives a new value for; inputs: own components whose values it needs.

    pure: whether what it renders depends on these arguments alone; then visitors with the same reports share what was drawn once.
    """

    outputs: list[Any]
    render: Callable[..., list[Any]]
    inputs: list[Any] = field(default_factory=list)
    pure: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _drawn: OrderedDict[tuple, tuple[list[Report], list[Any]]] = field(default_factory=OrderedDict, repr=False)

    def drawn(self, reports: Sequence[Report], layer: str, *values: Any) -> list[Any]:
        """An update for each output. The shelf keeps one object of equal reports, so that identity tells them apart."""
        if not self.pure:
            return self.render(reports, layer, *values)
        key = (tuple(map(id, reports)), layer, repr(values))
        with self._lock:
            if key in self._drawn:
                self._drawn.move_to_end(key)
                return list(self._drawn[key][1])
        made = self.render(reports, layer, *values)
        with self._lock:
            self._drawn[key] = list(reports), made  # holding the reports keeps their ids
            while len(self._drawn) > SHARED:
                self._drawn.popitem(last=False)
        return list(made)


@dataclass(frozen=True)
class Tab:
    """build(shell) lays the tab out, inside an open gr.Tab, and returns its View, or None when nothing in it depends on the reports."""

    name: str
    title: str
    build: Callable[[Shell], View | None]
    order: int = 0


@cache
def tabs() -> list[Tab]:
    """Every TAB in explorer/ui/tabs, in order."""
    from explorer.ui import tabs as room

    found = [importlib.import_module(f"{room.__name__}.{module.name}").TAB for module in pkgutil.iter_modules(room.__path__)]
    return sorted(found, key=lambda tab: tab.order)


@dataclass
class Shell:
    """What tabs share. runner, shelf: where results come from. catalogue: methods and their fields as JSON. models: names offered.

    Components: compared (the reports on the page as `seats` gives them), layer (the layer shown everywhere), active (name of the open tab), status (a line of
    HTML), bar (the gr.Tabs), panel (the controls of a run), picks (by PICKS: what was clicked in a figure or table),
    cleared (set when all that was compared left at once).
    sealed: what pages may not know yet. linked: by tab, the components of its own whose values a link carries, by name.
    follows: by tab, from what of those is set, the values of others that are left out of a link.
    planned: the Planner's controls, whose answer can be evidence. stops: (what a tab's own Cancel stops, its status line) of long work that the panel's
    Cancel stops, too.
    """

    runner: Runner
    shelf: Shelf
    catalogue: list[dict[str, Any]]
    models: list[str]
    compared: Any = None
    layer: Any = None
    active: Any = None
    status: Any = None
    bar: Any = None
    cleared: Any = None
    panel: Panel = field(default_factory=Panel)
    picks: dict[str, Any] = field(default_factory=dict)
    sealed: Sealed = field(default_factory=Sealed)
    linked: dict[str, dict[str, Any]] = field(default_factory=dict)
    follows: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    planned: list[Any] = field(default_factory=list)
    stops: list[tuple[Any, Any]] = field(default_factory=list)
    views: dict[str, View] = field(default_factory=dict)

    @property
    def controls(self) -> list[Any]:
        """The panel's components, in the order in which handlers get their values."""
        return self.panel.components()

    def outputs(self) -> list[Any]:
        """The outputs of all tabs, in order."""
        return [output for view in self.views.values() for output in view.outputs]

    def inputs(self) -> list[Any]:
        """The inputs that tabs need to draw themselves, in order."""
        return [entry for view in self.views.values() for entry in view.inputs]

    def drawn(self, active: str, reports: Sequence[Report], layer: str, values: Sequence[Any]) -> list[Any]:
        """An update for each of `outputs`: the open tab is drawn, the others are left as they are until they are opened."""
        updates: list[Any] = []
        values = list(values)
        for name, view in self.views.items():
            own, values = values[: len(view.inputs)], values[len(view.inputs) :]
            updates += view.drawn(reports, layer, *own) if name == active else [gr.skip()] * len(view.outputs)
        return updates

    def shared(self, reports: Sequence[Report], layer: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `compared` and `layer` show for these reports; a middle layer when the wanted one is not there."""
        names = layer_names(reports)
        shown = layer if layer in names else (names[len(names) // 2] if names else None)
        offered = seats(reports)
        compared = {"choices": offered, "value": [key for _, key in offered], "multiselect": True, "allow_custom_value": True}
        return compared, {"choices": [(short_layer(name), name) for name in names], "value": shown}


def picked(text: str) -> str:
    """The key in a box of `Shell.picks`, which a page's script fills with "key time"."""
    return (text or "").split(" ")[0]


def settings(text: str) -> dict[str, Any]:
    """A dict from JSON text that a page's script sent; {} when it is none."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
