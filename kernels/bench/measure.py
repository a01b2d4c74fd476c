"""Times ops beside the 16-bit operation they replace and beside peers: rotated copies larger than the cache, random data, medians with spread.

On a GPU every round is one CUDA graph over all copies. The bandwidth of a copy is measured in the same run; a time is reported with the bytes it
moved (operand as packed, inputs, outputs) as a part of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.bench.check import forms_on
from kernels.bench.peers import PEERS
from kernels.op import REFERENCE, Form, Op, Packed, ops
from kernels.timing import Timing, cache_bytes, time_call

MOST_COPIES = 256


def cases_of(op: Op, shapes: Iterable[tuple[int, int]], rows: Iterable[int], formats: Collection[str] = ()) -> list[Any]:
    """What an op is timed on: its own cases, or for products its formats at shapes (N, K) that they divide, each with all numbers of rows; only
    the formats of these names where there are names.
    """
    timed = [case for case in op.timed if not formats or format_of(case) in formats]
    if op.bits is None:
        return timed
    return [dataclasses.replace(case, m=m, n=n, k=k) for n, k in shapes for case in timed if divides(case, n, k) for m in rows]


def divides(case: Any, n: int, k: int) -> bool:
    """Whether a format's groups or blocks divide a weight [N, K] that has its outlier columns."""
    if case.activation is not None and case.activation.columns and max(case.activation.columns) >= k:
        return False
    return k % max(abs(case.group), 1) == 0 and (case.group >= -1 or n % 128 == 0)


def rotated(x: Tensor, tensors: dict[str, Tensor], device: torch.device) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Copies of inputs and operand, as many as exceed the cache twice over."""
    size = x.nbytes + sum(t.nbytes for t in tensors.values())
    count = min(MOST_COPIES, 2 + cache_bytes(device) // size)
    return [(x.clone().to(device), {name: t.clone().to(device) for name, t in tensors.items()}) for _ in range(count)]


def time_form(form: Form, x: Tensor, packed: Packed, device: torch.device, samples: int) -> tuple[Timing, int]:
    """(seconds of one call, bytes it reads and writes)."""
    copies = rotated(x, packed.tensors, device)
    calls = [lambda x=x, t=t: form.run(x, Packed(t, packed.meta)) for x, t in copies]
    result = calls[0]()
    moved = x.nbytes + packed.nbytes() + sum(t.nbytes for t in (result if isinstance(result, tuple) else (result,)))
    return time_call(calls, device, samples), moved


def time_baselines(op: Op, case: Any, x: Tensor, device: torch.device, samples: int) -> dict[str, Timing]:
    """Seconds of one call of each way to do the 16-bit operation on this device, torch's own first."""
    found = {}
    for base in op.baselines(case, torch.Generator().manual_seed(1)):
        if base.only in ("", device.type):
            calls = [lambda x=x, t=t, run=base.run: run(x, t) for x, t in rotated(x, base.tensors, device)]
            found[base.name] = time_call(calls, device, samples)
    return found


def rate(timing: Timing, moved: int, flops: float, copy: float) -> dict[str, float]:
    """A timing in the units of the table; copy: bytes/s of a copy on this device."""
    return {
        "us": timing.median * 1e6, "p20": timing.p20 * 1e6, "p80": timing.p80 * 1e6, "gb_per_s": moved / timing.median / 1e9,
        "of_copy": moved / timing.median / copy, "tflops": flops / timing.median / 1e12,
    }  # fmt: skip


def measure(
    device: torch.device, shapes: Iterable[tuple[int, int]], rows: Iterable[int], samples: int, copy: float, peers: bool,
    names: Iterable[str] = (), formats: Collection[str] = (),
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of the table, one for each op, case and number of rows, as they are measured; the named ops where there are names, in their order."""
    for op in (ops()[name] for name in names or ops()):
        baselines: dict[Any, dict[str, Timing]] = {}
        for case in cases_of(op, shapes, [max(rows)], formats):
            yield from measure_case(op, case, sorted(rows) if op.bits else [0], device, samples, copy, peers, baselines)


def measure_case(op: Op, case: Any, rows: list[int], device: torch.device, samples: int, copy: float, peers: bool, baselines: dict) -> Iterator[dict[str, Any]]:
    """The rows of one case, packed once: of the form that `choose` would take, and of its peers. baselines: those already timed, by shape. The fastest
    counts; a row has all of them, torch's linear too, which the reader may know.
    """
    inputs, operand = op.problem(case, torch.Generator().manual_seed(0))
    form = next((form for form in forms_on(op, device) if form is not REFERENCE and not form.refuses(operand)), None)
    if form is None:
        return
    packed = form.pack(operand)
    for m in rows:
        case, x = (dataclasses.replace(case, m=m), inputs[:m].bfloat16()) if m else (case, inputs.bfloat16())
        timing, moved = time_form(form, x, packed, device, samples)
        shape = (m, case.n, case.k) if m else dataclasses.replace(case, bits=8) if hasattr(case, "bits") else case
        if shape not in baselines:
            baselines[shape] = time_baselines(op, case, x, device, samples)
        name, base = min(baselines[shape].items(), key=lambda each: each[1].median)
        row = {"op": op.name, "form": form.runs(packed, m), "format": format_of(case), "case": describe(case)} | rate(timing, moved, op.flops(case), copy)
        row |= {"samples": timing.n, "bytes": moved, "baseline": name, "baseline_us": base.median * 1e6, "ratio": base.median / timing.median}
        row["baselines"] = {name: {"us": way.median * 1e6, "ratio": way.median / timing.median} for name, way in baselines[shape].items()}
        yield row | {"peers": {peer.name: time_peer(peer, x, operand, device, samples, timing) for peer in PEERS if peer.op == op.name} if peers else {}}


def time_peer(peer: Any, x: Tensor, operand: Any, device: torch.device, samples: int, ours: Timing) -> dict[str, Any]:
    """{"us", "ratio"}, how many times longer the peer takes, or {"why"} it cannot run here."""
    try:
        made = peer.make(x.to(device), operand)
        if isinstance(made, str):
            return {"why": made}
        tensors, run = made
        timing = time_call([lambda x=x, t=t: run(x, t) for x, t in rotated(x, tensors, device)], device, samples)
    except Exception as error:  # a peer is someone else's code: whatever it raises must not end the run
        return {"why": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    return {"us": timing.median * 1e6, "ratio": timing.median / ours.median}


def format_of(case: Any) -> str:
    """What is in low bits in a case, in words: a product says it itself, a cache has bits, a rotation rounds its outputs or does not."""
    if hasattr(case, "format"):
        return case.format()
    return f"{case.bits}-bit" if hasattr(case, "bits") else f"to {case.kind}" if getattr(case, "kind", "") else "16-bit"


def describe(case: Any) -> dict[str, Any]:
    """The numbers of a case that are not its format."""
    return {name: value for name, value in dataclasses.asdict(case).items() if isinstance(value, int | str) and not isinstance(value, bool)}
