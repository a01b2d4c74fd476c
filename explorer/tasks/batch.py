"""Tokens per second by batch size: a configuration beside 16 bits and W8A8, and the batch from which fewer bits of weights alone no longer win."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from explorer import models
from explorer.decode import Decoder
from explorer.devices import free_memory, spare_memory
from explorer.experiment import prepared, released
from explorer.kvcache import bytes_at
from explorer.metrics import Subject
from explorer.metrics.speed import quantile, read_per_token
from explorer.models import LoadedModel
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.request import Request
from explorer.tasks import Engine, Task
from explorer.tasks.roofline import NOISE, measured_roof

LARGEST, NEW, RUNS = 256, 9, 3  # sequences at most; tokens and runs a point
ARMS = 4  # times the 16-bit weights that three arms hold beside them: a packed copy of all, and codes and packed form of two
SLOWEST, PATIENCE = 2.0, 40.0  # seconds of a step, or of a configuration, beyond which larger batches are not tried
W8A8 = ("dynamic_int8", {"granularity": "channel", "activation": "token"})


def work(
    engine: Engine, model: str, method: str, params: dict[str, Any], context: int = 64, largest: int = 32, kv_bits: int = 16, head_bits: int = 16
) -> Iterator[Event]:
    """Answer data: model, context, roof as in the task roofline, arms: (role, label, peak: which rate of the roof its products have, points: (batch,
    tokens_per_second, low, high, prefill_tokens_per_second, bytes and flops a step)), crossing: {"16 bits", "W8A8": batch where it overtakes, or None},
    {} where other work disturbed the run; disturbed, sentence.
    """
    if not (isinstance(context, int) and 8 <= context <= 2048 and isinstance(largest, int) and 1 <= largest <= LARGEST):
        raise InputError(f"Give a context of 8 to 2,048 tokens and at most {LARGEST} sequences, not {str(context)[:20]} and {str(largest)[:20]}.")
    sizes = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    wanted = {"chosen": (method, params, head_bits), "16 bits": ("none", {}, 16), "W8A8": (*W8A8, 16)}
    if (method, head_bits) == ("none", 16):
        del wanted["chosen"]
    roof = yield from measured_roof(engine.load.device)
    asked = {role: Request(model, name, settings, kv_bits=kv_bits, head_bits=head).prepare(engine.load.hub) for role, (name, settings, head) in wanted.items()}
    for experiment, chosen, _ in asked.values():
        engine.load.require(experiment, chosen)
    loaded = yield from engine.load.checked(next(iter(asked.values()))[0].model)
    together = all_fit(loaded)
    points: dict[str, list[dict]] = {}
    peaks: dict[str, str] = {}
    for group in [list(asked)] if together else [[role] for role in asked]:
        with released() as hold:
            subjects = {}
            for role in group:
                subjects[role], _ = yield from prepared(*asked[role], engine.load, hold)
                peaks[role] = peak(subjects[role])
            points |= yield from measure_points(subjects, context, sizes)
            del subjects
    arms = [
        {"role": role, "label": name_of(experiment.spec, chosen), "peak": peaks[role], "points": points[role]}
        for role, (experiment, chosen, _) in asked.items()
    ]
    noise = disturbance(arms)
    found = {} if noise else {arm["role"]: crossing(arms[0]["points"], arm["points"]) for arm in arms[1:]}
    data = {"model": model, "context": context, "roof": roof, "arms": arms, "crossing": found, "disturbed": bool(noise or roof["doubt"])}
    said = noise or sentence(arms, found, together)
    if roof["doubt"]:
        said += f" But {roof['doubt']}, so the dotted lines may be too low: measure again."
    yield Answer("batch", data | {"sentence": said}, circumstances(engine.load.device))


def all_fit(loaded: LoadedModel) -> bool:
    """Whether all arms may be held at once, so that they can run in turn. Random weights are let go after each arm."""
    size = sum(layer.weight.nbytes for layer in models.linears(loaded.model).values())
    return not (loaded.ref.random or loaded.offloaded) and ARMS * size < spare_memory(loaded.device)


def measure_points(subjects: dict[str, Subject], context: int, sizes: list[int]) -> Iterator[Any]:
    """Yields Progress, returns for each role a point a batch size, until the next would not fit or it takes too long. The arms run in turn at each size."""
    one = {role: bytes_at(subject.loaded.model.config, context + NEW, subject.kv_bits) for role, subject in subjects.items()}
    device = next(iter(subjects.values())).loaded.device
    sizes = [size for size in sizes if size == 1 or 4 * size * sum(one.values()) < free_memory(device)]
    decoders, read, spent = {}, {}, dict.fromkeys(subjects, 0.0)
    for role, subject in subjects.items():
        with subject.quantized():
            decoders[role] = Decoder(subject.loaded, context + NEW + 4, subject.kv_bits, max(sizes))
            read[role] = read_per_token(subject.loaded.model) + decoders[role].beyond
    points: dict[str, list[dict]] = {role: [] for role in subjects}
    for size in sizes:
        taken = {role: ([], []) for role in decoders}
        for run in range(RUNS):
            for role in list(decoders)[:: -1 if run % 2 else 1]:
                yield Progress(f"batch {size}", run, RUNS, role)
                start = time.monotonic()
                with subjects[role].quantized():
                    first, steps = decoders[role].timed(prompts(subjects[role], size, context), NEW)
                    if run == 0:
                        decoders[role].capture()
                spent[role] += time.monotonic() - start
                if run:
                    taken[role][0].append(first)
                    taken[role][1].extend(steps)
        for role, (firsts, steps) in taken.items():
            counts = {"bytes": read[role] + size * one[role], "flops": size * multiplied(subjects[role])}
            points[role].append(point(size, context, firsts, steps) | counts)
            if statistics.median(steps) > SLOWEST or max(firsts) > 4 * SLOWEST or spent[role] > PATIENCE:
                del decoders[role]
    return points


def peak(subject: Subject) -> str:
    """Which measured rate bounds the products of most layers: that of int8 where inputs are rounded to it, else that of 16 bits."""
    rounded = [q for q in subject.qtensors.values() if q.activation is not None and q.activation.kind == "int8"]
    return "matmul_8" if 2 * len(rounded) > len(subject.originals) else "matmul_16"


def prompts(subject: Subject, size: int, context: int) -> Tensor:
    """Prompts [B, T] int64 of the evaluation text."""
    rows = subject.windows.flatten()
    return rows.repeat(-(-size * context // rows.numel()))[: size * context].view(size, context)


def multiplied(subject: Subject) -> int:
    """FLOPs of a token's products."""
    matrices = [*(layer.weight for layer in subject.originals.values()), subject.loaded.model.get_input_embeddings().weight]  # the head's shape
    return 2 * sum(math.prod(weight.shape) for weight in matrices)


def point(size: int, context: int, firsts: list[float], steps: list[float]) -> dict[str, Any]:
    """Rates from the seconds of the first token of each run and of every further one."""
    rates = [size / seconds for seconds in steps]
    return {
        "batch": size, "tokens_per_second": size / statistics.median(steps), "low": quantile(rates, 0.2), "high": quantile(rates, 0.8), "n": len(steps),
        "prefill_tokens_per_second": size * context / statistics.median(firsts),
    }  # fmt: skip


def crossing(mine: list[dict], theirs: list[dict]) -> float | None:
    """The batch at which `theirs` becomes as fast as `mine` and stays so, between two measured sizes on logarithmic axes; None when it never is."""
    pairs = [(a["batch"], math.log(a["tokens_per_second"] / b["tokens_per_second"])) for a, b in zip(mine, theirs, strict=False)]
    ahead = [i for i, (_, lead) in enumerate(pairs) if lead > 0]
    if not pairs or (ahead and ahead[-1] == len(pairs) - 1):
        return None
    if not ahead:
        return float(pairs[0][0])
    (left, lead), (right, lag) = pairs[ahead[-1]], pairs[ahead[-1] + 1]
    return left * (right / left) ** (lead / (lead - lag))


def disturbance(arms: list[dict]) -> str:
    """That other work disturbed the times, "" where none did: then nothing is concluded from them."""
    spread = max(point["high"] / point["low"] for arm in arms for point in arm["points"])
    said = f"{arms[0]['label']}: other work disturbed this run: times of one batch differ by a factor of {spread:.1f}, so nothing is compared or kept"
    return f"{said}. Measure again when the machine is quiet." if spread > NOISE else ""


def sentence(arms: list[dict], found: dict[str, float | None], together: bool = True) -> str:
    """What the sweep says, in words. together: whether the arms ran in turn."""
    if not found:
        return f"{arms[0]['label']} alone was measured."
    parts = []
    for role, batch in found.items():
        other = next(arm for arm in arms if arm["role"] == role)
        reach = min(arms[0]["points"][-1]["batch"], other["points"][-1]["batch"])
        passed = "is not ahead at any batch" if batch is not None and batch <= 1 else f"is overtaken at a batch of about {batch or 0:.0f}"
        parts.append(f"beside {role} it {f'stays ahead up to batch {reach}' if batch is None else passed}")
    how = "All ran in turn at each batch" if together else "They ran one after the other, for want of memory, so a change of the machine's pace counts too"
    return f"{arms[0]['label']}: {'; '.join(parts)}. {how}."


TASK = Task("batch", work, per_device=True)
