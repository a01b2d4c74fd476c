"""Named runs measured for whoever answers or follows a step: through the runner, which has stored ones at once; what was recorded where a run cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from explorer.learn.runs import named_runs, recorded
from explorer.records import InputError, Report
from explorer.ui.status import Clock, watched
from explorer.ui.tab import Shell

NOT_WAITED = "you did not wait for the run"


@dataclass(frozen=True)
class Graded:
    """reports: by name, all that is recorded and what was measured in its place; said: where the numbers that count come from."""

    reports: Mapping[str, Report]
    said: str


def run_named(shell: Shell, name: str, clock: Clock) -> Iterator[str | Report]:
    """Status lines of a named run, last its report, which goes onto the shelf."""
    positional, options = named_runs()[name].arguments()
    for event in watched(shell.runner.run(*positional, **options), clock, f"{recorded()[name].name}: " if name in recorded() else f"{name}: "):
        if isinstance(event, Report):
            shell.shelf.add(event)
            yield event
        elif isinstance(event, str):
            yield event


def measured(shell: Shell, names: Sequence[str]) -> Iterator[str | Graded]:
    """Status lines while the runs are measured, last what an answer is graded by. When one run is refused or fails, all of them are taken as recorded,
    so that what is compared was measured on one device.
    """
    found, clock = dict[str, Report](), Clock()
    try:
        for name in names:
            for event in run_named(shell, name, clock):
                if isinstance(event, Report):
                    found[name] = event
                else:
                    yield event
    except Exception as error:  # the answer is graded all the same, and says by what
        if not isinstance(error, InputError):
            logging.getLogger(__name__).error("a run to grade an answer failed", exc_info=error)
        yield by_record(names, str(error) if isinstance(error, InputError) else f"the run failed ({type(error).__name__}: {str(error)[:120]})")
        return
    yield Graded(recorded() | found, origins([found[name] for name in names], clock.seconds()))


def by_record(names: Sequence[str], why: str) -> Graded:
    """The same without running: why nothing was measured now is said."""
    first = recorded()[names[0]].provenance
    return Graded(recorded(), f"Graded by runs recorded on {first.get('device', '')}, {first.get('date', '')}: {why.rstrip('.')}.")


def origins(reports: Sequence[Report], seconds: float) -> str:
    """Which of the reports were measured now and which are from the store, with device and date."""
    stored = [r for r in reports if r.provenance.get("from_store") or r.provenance.get("recorded")]
    now = [r for r in reports if r not in stored]
    parts = []
    if now:
        parts.append(f"Measured here now on {now[0].provenance.get('device', '')} in {seconds:.1f} s: {', '.join(r.name for r in now)}.")
    if stored:
        p = stored[0].provenance
        parts.append(f"From this server's store, measured on {p.get('device', '')}, {p.get('date', '')}: {', '.join(r.name for r in stored)}.")
    return " ".join(parts)
