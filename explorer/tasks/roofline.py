"""What limits decoding here: what this device can read and multiply, where each operation stands under that roof, and what a token's time is spent on."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from explorer import devices
from explorer.decode import Decoder
from explorer.experiment import prepared, released
from explorer.llama import LlamaLoop
from explorer.metrics.speed import quantile, read_per_token
from explorer.provenance import circumstances, name_of
from explorer.records import Answer, Event, Progress
from explorer.request import Request
from explorer.tasks import Engine, Task
from kernels.timing import copy_bandwidth, time_call

PROMPT, NEW, RUNS = 96, 25, 4
PARTS = (("q, k and v", "qkv"), ("attention output", "out"), ("gate and up", "gate_up"), ("down", "down"))
ATTENTION = "attention over the cache"
NOISE = 2.0  # 95th percentile over median beyond which times are not a property of the model
OVERHEAD = 0.5  # of a token's time outside the matrix products: from here on they are not what limits it


def work(engine: Engine, model: str, method: str, params: dict[str, Any], kv_bits: int = 16, head_bits: int = 16) -> Iterator[Event]:
    """Answer data: label, model, loop, why; roof (read, copy: bytes/s; matmul_16, matmul_8: FLOP/s or None; sheet: [bytes/s, source] or None;
    cache: bytes, 0 unknown; doubt: why the read rate may be too low, or "");
    step (latencies, p50, p95: s; bytes: weights and cache a token reads); ops (op, kernel, shape, calls, seconds of all calls, bytes, flops; the
    products and ATTENTION, whose shape is tokens x channels of the queries);
    limit ("overhead", "bandwidth", "compute", "kernels" or "other work") and sentence.
    """
    experiment, chosen, texts = Request(model, method, params, kv_bits=kv_bits, head_bits=head_bits).prepare(engine.load.hub)
    with released() as hold:
        subject, _ = yield from prepared(experiment, chosen, texts, engine.load, hold)
        loaded, device = subject.loaded, subject.loaded.device
        roof = yield from measured_roof(device)
        with subject.quantized():
            decoder = Decoder(loaded, PROMPT + NEW + 8, kv_bits)
            latencies = yield from step_times(decoder, subject.windows[:1, :PROMPT])
            read = read_per_token(loaded.model) + decoder.beyond
            ops = []
            for name, rows in operations(decoder):
                yield Progress("operations", len(ops), len(PARTS) + 2, name)
                ops.append(rows())
        data = {"label": name_of(experiment.spec, chosen), "model": model, "loop": decoder.told(), "why": decoder.why, "roof": roof, "ops": ops}
        data["step"] = {"latencies": latencies, "p50": statistics.median(latencies), "p95": quantile(latencies, 0.95), "bytes": read}
        del subject, decoder
    found = verdict(data)
    if roof["doubt"]:
        found |= {"disturbed": True, "sentence": f"{found['sentence']} But {roof['doubt']}, so memory may be faster than drawn: measure again."}
    yield Answer("roofline", data | found, circumstances(device))


def measured_roof(device: torch.device) -> Iterator[Any]:
    """Yields Progress, returns the roof. The read rate is the process's one; the others are measured anew each time."""
    yield Progress("roof", 0, 4, "read")
    read = devices.read_rate(device)
    roof: dict[str, Any] = {"read": read.value, "doubt": read.doubt(), "cache": devices.cache_size(device)}
    wanted = {
        "copy": copy_bandwidth,
        "matmul_16": partial(devices.matmul_rate, dtype=torch.bfloat16), "matmul_8": partial(devices.matmul_rate, dtype=torch.int8),
    }  # fmt: skip
    for i, (name, rate) in enumerate(wanted.items()):
        yield Progress("roof", 1 + i, 4, name)
        roof[name] = rate(device)
    sheet = devices.data_sheet(device)
    return roof | {"sheet": None if sheet is None else list(sheet)}


def step_times(decoder: Decoder, prompt: torch.Tensor) -> Iterator[Any]:
    """Yields Progress, returns seconds of single tokens of all runs but the first."""
    latencies: list[float] = []
    for run in range(RUNS):
        yield Progress("decode", run, RUNS)
        _, steps = decoder.timed(prompt, NEW)
        latencies += steps if run else []
        if not run:
            decoder.capture()
    return [round(seconds, 7) for seconds in latencies]


def operations(decoder: Decoder) -> Iterator[tuple[str, Any]]:
    """(name, function that measures it) of each kind of product of our own loop and of its attention, the calls in the order of the blocks so that
    weights come from where they come from in decoding; nothing for another loop.
    """
    loop = decoder.forward
    if not isinstance(loop, LlamaLoop):
        return
    for title, part in PARTS:
        yield title, partial(_timed, title, [getattr(block, part) for block in loop.blocks], loop)
    yield "head", partial(_timed, "head", [loop.head], loop)
    yield ATTENTION, partial(_timed_attention, loop)


@torch.no_grad()
def _timed(title: str, products: list[Any], loop: LlamaLoop) -> dict[str, Any]:
    n, k = products[0].shape
    x = torch.randn(1, k, generator=torch.Generator().manual_seed(0)).to(loop.embedding)
    taken = time_call([partial(product.run, x) for product in products], loop.device, samples=9)
    bytes_read = sum(product.read for product in products) + len(products) * (n + k) * x.element_size()
    kernels = "; ".join(dict.fromkeys(product.name for product in products))
    return {
        "op": title, "kernel": kernels, "shape": [n, k], "calls": len(products), "seconds": taken.median * len(products), "bytes": bytes_read,
        "flops": sum(2 * product.shape[0] * product.shape[1] for product in products),
    }  # fmt: skip


@torch.no_grad()
def _timed_attention(loop: LlamaLoop) -> dict[str, Any]:
    channels = loop.queries * loop.size
    queries = torch.randn(1, loop.queries, loop.size, generator=torch.Generator().manual_seed(0)).to(loop.embedding)
    calls = [partial(attend, queries) for attend in loop.attentions()]
    taken = time_call(calls, loop.device, samples=9)
    return {
        "op": ATTENTION, "kernel": loop.attention, "shape": [loop.length, channels], "calls": len(calls), "seconds": taken.median * len(calls),
        "bytes": loop.seen_bytes(), "flops": 4 * loop.length * channels * len(calls),
    }  # fmt: skip


def verdict(data: dict[str, Any]) -> dict[str, Any]:
    """{"limit", "sentence"}, and "disturbed" where it was, from the measured times alone."""
    step, roof, ops = data["step"]["p50"], data["roof"], data["ops"]
    if (spread := data["step"]["p95"] / step) > NOISE:
        disturbed = f"Other work on this machine disturbed the run: one token in twenty took {spread:.1f} times the median, so measure again."
        return {"limit": "other work", "sentence": disturbed, "disturbed": True}
    if not ops:
        share = data["step"]["bytes"] / roof["read"] / step
        limit = "bandwidth" if share > OVERHEAD else "overhead"
        ran = f"transformers' own loop runs ({data['why']}), so single operations are not timed"
        return {"limit": limit, "sentence": f"{limit.capitalize()}: reading the weights would take {share:.0%} of a token's {step * 1e3:.2f} ms; {ran}."}
    seeing, ops = sum(op["seconds"] for op in ops if op["op"] == ATTENTION), [op for op in ops if op["op"] != ATTENTION]
    busy = sum(op["seconds"] for op in ops)
    reading, computing = sum(op["bytes"] for op in ops) / roof["read"], sum(op["flops"] for op in ops) / roof["matmul_16"]
    where = f"The matrix products take {busy * 1e3:.2f} ms of a token's {step * 1e3:.2f} ms"
    if busy < OVERHEAD * step:
        rest = f"attention takes {seeing * 1e3:.2f} ms; norms and the host's instructions take the rest, and fewer bits cannot shorten that"
        return {"limit": "overhead", "sentence": f"Overhead: {where}; {rest}."}
    worst, kind = max((reading, "bandwidth"), (computing, "compute"))
    if worst < OVERHEAD * busy:
        slow = max(ops, key=lambda op: op["seconds"] - op["bytes"] / roof["read"])
        at = slow["bytes"] / roof["read"] / slow["seconds"]
        return {"limit": "kernels", "sentence": f"Kernels: {where}, and reading would take {reading * 1e3:.2f} ms; {slow['op']} reaches {at:.0%} of the roof."}
    what = f"reading {sum(op['bytes'] for op in ops) / 1e6:,.0f} MB" if kind == "bandwidth" else "multiplying"
    return {"limit": kind, "sentence": f"{kind.capitalize()}: {where}, of which {what} at the measured rate needs {worst / busy:.0%}."}


TASK = Task("roofline", work, per_device=True)
