"""The command line's commands, one file each, found by folder: flags in `arguments`, work in `work`. JSON on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from explorer.records import Event, InputError, Progress


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


def store_path() -> Path:
    """Where results are kept unless --store names another place."""
    return Path.home() / ".cache" / "quantization-explorer" / "results.db"


def loader() -> Any:
    """The Loader of this process, with the hub's address, its cache and whether to stay offline from the environment, as the app does."""
    from explorer.experiment import Loader
    from explorer.hub import Hub, settings_from

    return Loader(hub=Hub(settings_from(os.environ)))


def runner_of(store: Path) -> Any:
    """The LocalRunner of this process, over a result file."""
    from explorer.experiment import LocalRunner
    from explorer.store import Store

    return LocalRunner(Store(store), loader())


def writable(path: Path) -> None:
    """Raises InputError where no file can be written at a path: known before the work, not after it. Leaves everything as it is."""
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"The file {path} cannot be written ({error.strerror}); choose another place.") from error


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
