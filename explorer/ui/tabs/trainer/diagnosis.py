"""A broken model handed to whoever is interviewed: drawn and measured on the server, shown like any pair of runs; what was planted stays here until an
answer is on record.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from explorer.bugs import BUGS
from explorer.learn.case import SETUPS, diagnosed, draw
from explorer.records import InputError, Report
from explorer.ui.status import Clock, failure, status
from explorer.ui.tab import Shell
from explorer.ui.tabs.failures import PLOTS, both, drawn, report
from explorer.ui.tabs.learn.handlers import controls_for

EVIDENCE = 2 + 2 + 2 * len(PLOTS) + 2  # status and ticket; table and column, the plots with their words, the chart of groups alike
START = "Draw a model: a bug is planted in a copy of a quantized run, and both are measured here."


class Diagnosis:
    """Handlers of the card with a broken model over the shell."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self._dice = shell, random.SystemRandom()

    def draw(self, layer: Any) -> Iterator[list[Any]]:
        """Plants a bug drawn at random and streams the measuring: status, ticket, table, then the plots. The page gets the ticket, never the bug."""
        kept, clock = [gr.skip()] * (EVIDENCE - 2), Clock()
        case = draw(self._dice)
        reports = list[Report]()
        try:
            for event in both(self.shell, self._asked(case), case["bug"], clock):
                if isinstance(event, Report):
                    reports.append(event)
                else:
                    yield [event, gr.skip(), *kept]
            told = status(f"{SETUPS[case['setup']].title}, with a bug in the second column. Measured in {clock.seconds():.1f} s.", "done")
            yield [told, self.shell.sealed.put(case), report(reports, ""), *drawn(reports, str(layer or ""))]
        except Exception as error:  # the outermost boundary: whoever pressed Draw gets a sentence
            yield [failure(error), gr.skip(), *kept]

    def controls(self, ticket: Any) -> list[Any]:
        """The values of the shell's controls for the configuration of a case, without its bug."""
        case = self.shell.sealed.open(ticket)
        if not case:
            return [gr.skip() for _ in self.shell.controls]
        setup = SETUPS[case["setup"]]
        return controls_for(self.shell, setup.method, setup.params, {})

    def grade(self, ticket: Any, named: Any, step: Any, confidence: float, runs: Sequence[Report]) -> dict[str, Any]:
        """The graded diagnosis of a case. Raises InputError with a sentence when something is missing; a case can be answered once."""
        case = self.shell.sealed.open(ticket)
        if not case:
            raise InputError("Draw a broken model first; a drawn one is forgotten when the server restarts.")
        if case.get("answered"):
            raise InputError("This model is on record already; draw another one.")
        if named not in BUGS or step not in BUGS:
            raise InputError("Choose a diagnosis and a next step first; a guess with low confidence costs little.")
        reports = [event for event in both(self.shell, self._asked(case), case["bug"], Clock()) if isinstance(event, Report)]
        self.shell.sealed.mark(ticket, {"answered": True})
        return diagnosed(case, named, step, confidence, reports[1], runs)

    @staticmethod
    def _asked(case: dict[str, Any]) -> dict[str, Any]:
        setup = SETUPS[case["setup"]]
        return {"model": "demo", "method": setup.method, "params": setup.params}
