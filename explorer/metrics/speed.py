"""How fast tokens come, beside the 16-bit loop in the same minute: the first, each further one, and what reading alone takes. Times the loop in `decode`."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from explorer.decode import Decoder
from explorer.devices import bandwidth, spare_memory, waited
from explorer.kvcache import bytes_at
from explorer.metrics import Metric, Subject
from explorer.records import Measurement, Progress
from explorer.sequential import student_t

PROMPT, NEW = 96, 33  # tokens of prompt, so many that a cache in low bits holds packed ones; tokens decoded a run
ROUNDS, LEAST, SLOW = 6, 3, 5.0  # runs of each loop after its warm-up, and how many where a run of each takes so many seconds

Arm = tuple[Decoder, Callable[[], AbstractContextManager[None]]]  # a loop, and a `with` in which the model is the one that it runs


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of a sorted sample lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """Raises NoRoom for weights that come from their files at every token: that would be the disk's speed."""
    loaded = subject.loaded
    subject.require_memory()
    arms: list[Arm] = [(Decoder(loaded, PROMPT + NEW + 8), nullcontext)] if two_fit(subject) else []
    with subject.quantized():
        decoder = Decoder(loaded, PROMPT + NEW + 8, subject.kv_bits)
        read = read_per_token(loaded.model) + decoder.beyond
    arms.insert(0, (decoder, subject.quantized))
    firsts, latencies, (idle, used) = yield from rounds(arms, subject.windows[:1, :PROMPT])
    yield Measurement("decode_loop", decoder.told())
    if math.isfinite(idle):
        yield Measurement("decode_waited", 100 * max(0.0, idle) / (max(0.0, idle) + used), "%")
    yield Measurement("decode_copies", decoder.copies, "bytes")
    yield Measurement("decode_attention", decoder.attention)
    yield Measurement("decode_cache_bytes", decoder.forward.cache_bytes(), "bytes")
    yield from summarise(firsts[0], list(itertools.chain(*latencies[0])), read + bytes_at(loaded.model.config, PROMPT + NEW, subject.kv_bits), subject)
    if len(arms) > 1:
        pairs = zip(*([statistics.median(steps) for steps in arm] for arm in latencies), strict=True)
        yield speedup("decode_speedup", [sixteen / low for low, sixteen in pairs])
        yield speedup("first_token_speedup", [sixteen / low for low, sixteen in zip(*firsts, strict=True)])


def two_fit(subject: Subject) -> bool:
    """Whether there is a 16-bit loop to time beside the quantized one: its weights are there, and there is memory for what it holds beside them, on a CPU
    a packed copy of all of them and on a GPU what joining two matrices takes.
    """
    if not (subject.layers or subject.head) and subject.kv_bits == 16:
        return False
    loaded, weights = subject.loaded, [layer.weight for layer in subject.originals.values()]
    if loaded.offloaded or any(weight.is_meta for weight in weights):
        return False
    sizes = [weight.nbytes for weight in (*weights, loaded.model.get_input_embeddings().weight)]  # the embedding's, for the head's
    return (sum(sizes) if loaded.device.type == "cpu" else 4 * max(sizes)) < spare_memory(loaded.device)


def rounds(arms: list[Arm], prompt: Any) -> Iterator[Any]:
    """Runs the loops in turn, after a warm-up of each, the other one first in every second round: work beside them that comes and goes meets both alike.

    Yields Progress. Returns (seconds to the first token [arm][round], of each further token [arm][round][token], (seconds that threads waited for a core
    and that they ran)). prompt [1, T] int64.
    """
    taken = 0.0
    for decoder, place in arms:
        yield Progress("speed", 0, ROUNDS, "warm-up")
        with place():
            taken += NEW * statistics.median(decoder.timed(prompt, NEW)[1])
            decoder.capture()
    count = ROUNDS if taken < SLOW else LEAST
    firsts, latencies = ([[] for _ in arms] for _ in range(2))
    idle, used = 0.0, 0.0
    for done in range(count):
        for i in range(len(arms))[:: -1 if done % 2 else 1]:
            yield Progress("speed", done, count, f"{'16 bits' if i else 'quantized'}, round {done + 1}")
            before, ran = waited(), time.process_time()
            with arms[i][1]():
                first, steps = arms[i][0].timed(prompt, NEW)
            idle, used = idle + waited() - before, used + time.process_time() - ran
            firsts[i].append(first)
            latencies[i].append(steps)
    return firsts, latencies, (idle, used)


def speedup(name: str, ratios: list[float]) -> Measurement:
    """How many times as fast as 16 bits: the geometric mean of a ratio a round, with Student's 95% interval over their logarithms."""
    logs, n = [math.log(ratio) for ratio in ratios], len(ratios)
    middle, half = statistics.fmean(logs), student_t(0.05, n - 1) * statistics.stdev(logs) / math.sqrt(n)
    return Measurement(name, math.exp(middle), "x", low=math.exp(middle - half), high=math.exp(middle + half), n=n)


def read_per_token(model: Any) -> int:
    """Bytes of weights that one token needs, layer by layer: all but the embedding's table, of which it reads one row, unless the head is the same tensor."""
    tensors = {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    table = model.get_input_embeddings().weight
    if getattr(model.get_output_embeddings(), "weight", None) is not table:
        tensors.pop(id(table), None)
    return sum(tensors.values())


def summarise(firsts: list[float], latencies: list[float], bytes_per_token: float, subject: Subject) -> Iterator[Measurement]:
    """Tokens/s is that of the median token, which a stall of the machine does not move; its bounds are the 20th and 80th percentile of single tokens."""
    n, rate = len(latencies), 1 / quantile(latencies, 0.5)
    low, high = 1 / quantile(latencies, 0.8), 1 / quantile(latencies, 0.2)
    moved, source = bandwidth(subject.loaded.device)
    limit = moved.value / bytes_per_token
    yield Measurement("decode_tokens_per_second", rate, "tokens/s", low=low, high=high, n=n)
    yield Measurement("time_to_first_token", statistics.median(firsts), "s", low=min(firsts), high=max(firsts), n=len(firsts))
    yield Measurement("decode_latency_p50", quantile(latencies, 0.5), "s", n=n)
    yield Measurement("decode_latency_p95", quantile(latencies, 0.95), "s", n=n)
    yield Measurement("decode_latencies", [round(v, 6) for v in latencies], "s", n=n)
    yield Measurement("decode_limit", limit, "tokens/s", how="estimated")
    yield Measurement("decode_bandwidth", moved.value, "bytes/s", how="measured" if source.startswith("measured") else "estimated")
    yield Measurement("decode_bandwidth_waited", moved.waited, "%")


METRIC = Metric("speed", measure, per_device=True, of_weights=True, order=3)
