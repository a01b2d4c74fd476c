"""A grid of experiments as one stream of events: each configuration waits for its own turn and is stored on its own, so a sweep can be cut and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from explorer.grid import LIMIT, Configuration, grid
from explorer.link import WHOLE
from explorer.methods import build, catalogue, spec_of
from explorer.provenance import name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.sizes import out_of_memory
from explorer.tasks import Engine, Task

TOO_LARGE = "The memory was not enough for this configuration."


def work(
    engine: Engine, model: str, methods: list[str], bits: list[int], groups: list[int], options: dict[str, Any] | None = None,
    further: dict[str, list[str]] | None = None, seeds: list[int] | None = None, again: bool = False,
) -> Iterator[Event]:  # fmt: skip
    """Yields Progress, and a Report for each configuration, the baseline's first; Answer data: done, failed ({name: sentence}), seconds, refused (what
    failed as `explorer.wide` has it in a row).

    options: the further fields of a Request, such as kv_bits. further: as in `grid`. seeds: draws of calibration text, each a run of the configurations
    that read it. again: measure speeds and sizes once more. A configuration that this model refuses, or that does not fit the memory, is noted and passed over.
    """
    asked, start = drawn(grid(catalogue(), methods, bits, groups, further), seeds or []), time.perf_counter()
    failed: dict[str, str] = {}
    refused: list[dict[str, Any]] = []
    for done, (one, drawing) in enumerate(asked):
        given = (options or {}) | drawing | (WHOLE if one.method == "none" else {})
        label = named(one, given, drawing)["label"]  # of what its method refuses, the method's name alone
        asked_for = [label] if label != one.method else [label, *(f"{key}={value}" for key, value in one.params)]
        name = " ".join([*asked_for, *(f"{key} {value}" for key, value in drawing.items())])
        yield Progress("sweep", done, len(asked), name)
        try:
            for event in engine.run(model, one.method, dict(one.params), again=again, **given):
                if isinstance(event, Progress):
                    share = event.done / max(1, event.total)
                    waits, told = event.stage in ("waiting", "download"), event.detail if event.stage == "waiting" else f"{event.stage} {share:.0%}"
                    event = Progress(event.stage if waits else "sweep", done, len(asked), f"{name}, {told}")  # whoever limits computing sees that it waits
                yield event
        except Exception as error:
            if one.method == "none" or not (isinstance(error, InputError) or out_of_memory(error)):
                raise
            failed[name] = str(error) if isinstance(error, InputError) else TOO_LARGE
            refused.append(named(one, given, drawing) | {"error": failed[name]})
    yield Answer("sweep", {"done": len(asked) - len(failed), "failed": failed, "refused": refused, "seconds": time.perf_counter() - start})


def named(one: Configuration, given: dict[str, Any], drawing: dict[str, int]) -> dict[str, Any]:
    """A configuration that did not run: label, method, params with all defaults where its method takes them, bits of cache and head, seed where it reads
    calibration text.
    """
    bits = {name: given.get(name, 16) for name in ("kv_bits", "head_bits")}
    found = {"label": one.method, "method": one.method, "params": [list(pair) for pair in one.params], **bits, "seed": ""}
    try:
        method = build(one.method, dict(one.params))
    except InputError:
        return found
    spec = replace(spec_of(method), **bits)
    seed = drawing.get("seed", given.get("seed", 0)) if method.reads_inputs() else ""
    return found | {"label": name_of(spec, method), "params": [list(pair) for pair in spec.params], "seed": seed}


def drawn(asked: Sequence[Configuration], seeds: Sequence[int]) -> list[tuple[Configuration, dict[str, int]]]:
    """(configuration, {"seed": ...}) for every seed where calibration text is read, else for the first one. Raises InputError for more than LIMIT."""
    draws = [{"seed": seed} for seed in dict.fromkeys(seeds)] or [{}]
    found = [(one, draw) for one in asked for draw in (draws if len(draws) > 1 and reads(one) else draws[:1])]
    if len(found) > LIMIT + 1:
        raise InputError(f"These are {len(found) - 1} runs; choose fewer configurations or seeds, at most {LIMIT}.")
    return found


def reads(one: Configuration) -> bool:
    """Whether a configuration reads calibration text; one that its method refuses reads none."""
    try:
        return build(one.method, dict(one.params)).reads_inputs()
    except InputError:
        return False


TASK = Task("sweep", work, turn="own", stored=False)
