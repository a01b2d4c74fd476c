"""The command line's commands, one file each, found by folder: flags in `arguments`, work in `work`. JSON on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from explorer.records import Answer, Event, InputError, Progress, Report, plain
from explorer.writing import cleared

UNSAVED: list[str] = []  # of the command that runs: why each result that it gave is in no store


@dataclass(frozen=True)
class Command:
    """`python -m explorer <name>`. arguments(parser) adds its flags; work(args) does it and may return an exit code; InputError becomes 2.

    stores: whether it takes --store.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int | None]
    stores: bool = True


@cache
def commands() -> dict[str, Command]:
    """Every COMMAND in this folder, by name."""
    found = [importlib.import_module(f"{__name__}.{module.name}").COMMAND for module in pkgutil.iter_modules(__path__)]
    return {command.name: command for command in found}


def loader() -> Any:
    """The Loader of this process, with the hub's address, its cache and whether to stay offline from the environment, as the app does."""
    from explorer.hub import Hub, settings_from
    from explorer.loader import Loader

    return Loader(hub=Hub(settings_from(os.environ)))


class Noting:
    """A runner that notes in UNSAVED which of its results the store could not keep."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def run(self, *arguments: Any, **options: Any) -> Iterator[Event]:
        return self._noted(self._runner.run(*arguments, **options))

    def do(self, *arguments: Any) -> Iterator[Event]:
        return self._noted(self._runner.do(*arguments))

    def _noted(self, events: Iterator[Event]) -> Iterator[Event]:
        with closing(events):
            for event in events:
                if isinstance(event, Report | Answer) and (why := event.provenance.get("unsaved")):
                    UNSAVED.append(why)
                yield event


def runner_of(store: Path, load: Any = None) -> Any:
    """The runner of this process, over a result file. load: the Loader it uses; None for one of its own."""
    from explorer.experiment import LocalRunner
    from explorer.store import Store, bytes_from

    return Noting(LocalRunner(Store(store, bytes_from()), load or loader()))


def document(data: Any) -> str:
    """One JSON document of records or plain data, on one line. What is no number or endless is the text "nan", "inf" or "-inf": JSON has no such numbers."""
    return json.dumps(plain(data), allow_nan=False)


def writable(path: Path) -> None:
    """Raises InputError where no file can be written at a path: known before the work, not after it. Leaves everything as it is."""
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"The file {path} cannot be written ({error.strerror}); choose another place.") from error


def tidied(path: Path) -> None:
    """Removes what an earlier command left unfinished where a path is to be written, because it was killed, and says so on stderr."""
    for left in cleared(path):
        print(f"{left} was left by an earlier command that was killed while it wrote, and is removed.", file=sys.stderr)


def shown(steps: Generator[Event, None, Any]) -> Any:
    """What a generator returns; its progress goes to stderr."""
    while True:
        try:
            show(next(steps))
        except StopIteration as done:
            return done.value


def show(event: Event) -> None:
    """Progress to stderr."""
    if isinstance(event, Progress):
        print(f"{event.stage}: {event.done}/{event.total} {event.detail}", file=sys.stderr)
