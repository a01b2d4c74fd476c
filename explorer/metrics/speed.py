"""How fast tokens come: time to first token, seconds per token, and what bounds them, measured on the loop in `decode`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

from explorer.decode import Decoder
from explorer.devices import bandwidth, waited
from explorer.kvcache import bytes_at
from explorer.metrics import Metric, Subject
from explorer.records import Measurement, Progress

PROMPT, NEW, RUNS = 96, 33, 4  # tokens of prompt, so many that a cache in low bits holds packed ones; tokens decoded a run; runs, the first warms up


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of a sorted sample lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """Raises NoRoom for weights that come from their files at every token: that would be the disk's speed."""
    loaded = subject.loaded
    subject.require_memory()
    with subject.quantized():
        decoder = Decoder(loaded, PROMPT + NEW + 8, subject.kv_bits)
        prompt = subject.windows[:1, :PROMPT]
        firsts, latencies, waits = [], [], []
        for run in range(RUNS):
            yield Progress("speed", run, RUNS, "warm-up" if run == 0 else f"run {run}")
            idle, used = waited(), time.process_time()
            first, steps = decoder.timed(prompt, NEW)
            waits.append((waited() - idle, time.process_time() - used))
            if run == 0:
                decoder.capture()
            else:
                firsts.append(first)
                latencies += steps
        read, held = read_per_token(loaded.model) + decoder.beyond, decoder.forward.cache_bytes()
    yield Measurement("decode_loop", decoder.told())
    lost, used = (sum(parts) for parts in zip(*waits[1:], strict=True))
    if math.isfinite(lost):
        yield Measurement("decode_waited", 100 * max(0.0, lost) / (max(0.0, lost) + used), "%")
    yield Measurement("decode_copies", decoder.copies, "bytes")
    yield Measurement("decode_attention", decoder.attention)
    yield Measurement("decode_cache_bytes", held, "bytes")
    yield from summarise(firsts, latencies, read + bytes_at(loaded.model.config, PROMPT + NEW, subject.kv_bits), subject)


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
    yield Measurement("decode_bound", "bandwidth" if rate > limit / 2 else "overhead", how="estimated")


METRIC = Metric("speed", measure, per_device=True, of_weights=True)
