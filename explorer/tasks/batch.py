"""Tokens per second by batch size: a configuration beside 16 bits and W8A8, and the batch from which fewer bits of weights alone no longer win."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

from explorer.decode import Decoder
from explorer.devices import free_memory
from explorer.experiment import prepared, released
from explorer.kvcache import bytes_at
from explorer.metrics import Subject
from explorer.metrics.speed import quantile, read_per_token
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, InputError, Progress
from explorer.request import Request
from explorer.tasks import Engine, Task
from explorer.tasks.roofline import NOISE, measured_roof

LARGEST, NEW, RUNS = 256, 9, 3  # sequences at most; tokens and runs a point
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
    arms = []
    for role, (name, settings, head) in wanted.items():
        experiment, chosen, texts = Request(model, name, settings, kv_bits=kv_bits, head_bits=head).prepare(engine.load.hub)
        with released() as hold:
            subject, _ = yield from prepared(experiment, chosen, texts, engine.load, hold)
            points = yield from measure_points(subject, role, context, sizes)
            arms.append({"role": role, "label": name_of(experiment.spec, chosen), "peak": peak(subject), "points": points})
            del subject
    noise = disturbance(arms)
    found = {} if noise else {arm["role"]: crossing(arms[0]["points"], arm["points"]) for arm in arms[1:]}
    data = {"model": model, "context": context, "roof": roof, "arms": arms, "crossing": found, "disturbed": bool(noise or roof["doubt"])}
    said = noise or sentence(arms, found)
    if roof["doubt"]:
        said += f" But {roof['doubt']}, so the dotted lines may be too low: measure again."
    yield Answer("batch", data | {"sentence": said}, circumstances(engine.load.device))


def measure_points(subject: Subject, role: str, context: int, sizes: list[int]) -> Iterator[Any]:
    """Yields Progress, returns a point a batch size, until the next would not fit or it takes too long."""
    loaded, points = subject.loaded, []
    one = bytes_at(loaded.model.config, context + NEW, subject.kv_bits)
    sizes = [size for size in sizes if size == 1 or 4 * size * one < free_memory(loaded.device)]
    with subject.quantized():
        decoder = Decoder(loaded, context + NEW + 4, subject.kv_bits, max(sizes))
        read = read_per_token(loaded.model) + decoder.beyond
        matrices = [*(layer.weight for layer in subject.originals.values()), loaded.model.get_input_embeddings().weight]  # the head's shape
        multiplied = 2 * sum(math.prod(weight.shape) for weight in matrices)
        rows = subject.windows.flatten()
        start = time.monotonic()
        for size in sizes:
            prompt = rows.repeat(-(-size * context // rows.numel()))[: size * context].view(size, context)
            firsts, steps = [], []
            for run in range(RUNS):
                yield Progress(f"batch {size}", run, RUNS, role)
                first, taken = decoder.timed(prompt, NEW)
                if run == 0:
                    decoder.capture()
                else:
                    firsts.append(first)
                    steps += taken
            rates = [size / seconds for seconds in steps]
            points.append({
                "batch": size, "tokens_per_second": size / statistics.median(steps), "low": quantile(rates, 0.2), "high": quantile(rates, 0.8), "n": len(steps),
                "prefill_tokens_per_second": size * context / statistics.median(firsts), "bytes": read + size * one, "flops": size * multiplied,
            })  # fmt: skip
            if statistics.median(steps) > SLOWEST or max(firsts) > 4 * SLOWEST or time.monotonic() - start > PATIENCE:
                break
    return points


def peak(subject: Subject) -> str:
    """Which measured rate bounds the products of most layers: that of int8 where inputs are rounded to it, else that of 16 bits."""
    rounded = [q for q in subject.qtensors.values() if q.activation is not None and q.activation.kind == "int8"]
    return "matmul_8" if 2 * len(rounded) > len(subject.originals) else "matmul_16"


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


def sentence(arms: list[dict], found: dict[str, float | None]) -> str:
    """What the sweep says, in words."""
    if not found:
        return f"{arms[0]['label']} alone was measured."
    parts = []
    for role, batch in found.items():
        other = next(arm for arm in arms if arm["role"] == role)
        reach = min(arms[0]["points"][-1]["batch"], other["points"][-1]["batch"])
        first = arms[0]["points"][0]["tokens_per_second"] / other["points"][0]["tokens_per_second"]
        passed = "is not ahead at any batch" if batch is not None and batch <= 1 else f"is overtaken at a batch of about {batch or 0:.0f}"
        end = f"stays ahead up to batch {reach}" if batch is None else passed
        parts.append(f"beside {role} it is {first:.2f} times as fast for one sequence and {end}")
    return f"{arms[0]['label']}: {'; '.join(parts)}."


TASK = Task("batch", work, per_device=True)
