"""The runner of a ZeroGPU Space: each call is a process of its own that has the GPU for a while; the platform kills, queues and charges it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from explorer import rights
from explorer.records import Event, InputError
from explorer.worker import WorkerSettings, explain, local_runner

SECONDS = 60  # of a GPU that a call asks for; a visitor's daily share is charged by it


class ZeroGpuRunner:
    """`run` and `do` as LocalRunner has them. gpu: `spaces.GPU`; made at start-up, because the platform looks for decorated functions then.
    token: says with whose login on the hub it is asked.
    """

    def __init__(self, settings: WorkerSettings, gpu: Callable[..., Any], token: Callable[[], str] = lambda: "") -> None:
        import torch  # noqa: F401 - spaces patches torch at start-up; loading it in each call would be charged

        def call(kind: str, token: str, arguments: tuple, options: dict[str, Any]) -> Iterator[Event | str]:
            runner = local_runner(settings)  # in the call's own process: neither a connection to the store nor CUDA outlives a fork
            try:
                with rights.of(token):
                    yield from getattr(runner, kind)(*arguments, **options)
            except Exception as error:  # only text passes safely from process to process
                yield explain(error).sentence

        self._call, self._token = gpu(duration=SECONDS)(call), token

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        """An experiment's events, last a Report. Raises InputError with a sentence."""
        yield from self._events("run", (model, method, params), options)

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        """A task's events, last an Answer. Raises InputError with a sentence."""
        yield from self._events("do", (task, arguments), {})

    def healthy(self) -> bool:
        """The platform makes a worker for each call."""
        return True

    def waiting(self) -> int:
        """Unknown: the platform queues."""
        return 0

    active = waiting

    def _events(self, kind: str, arguments: tuple, options: dict[str, Any]) -> Iterator[Event]:
        events = self._call(kind, self._token(), arguments, options)
        try:
            for event in events:
                if isinstance(event, str):
                    raise InputError(event)
                yield event
        finally:
            events.close()
