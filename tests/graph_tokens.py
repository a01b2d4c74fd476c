"""Whether a captured token loop computes what it computes launch by launch, and what the CPU does: `python -m tests.graph_tokens`, on a machine with a GPU.

The bundled model in 16 bits and in 4, with a cache of 16 and of 4 bits. Each loop is given the tokens that the CPU's chose, so that one near tie does not
part them, and every step's logits are compared. Exit code 1 where they differ by more than rounding, or nothing was captured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from explorer.commands import shown
from explorer.decode import Decoder
from explorer.experiment import prepared, released
from explorer.loader import Loader
from explorer.request import Request

PROMPT, NEW = 62, 40  # the low-bit cache packs its first group after 64 tokens and the next 32 later, between two replays
CONFIGURATIONS = (("none", {}, 16), ("none", {}, 4), ("rtn", {"bits": 4}, 16), ("rtn", {"bits": 4}, 4))
GRAPH, DEVICES = 1e-3, 0.06  # relative errors allowed: the same kernels twice; two devices that add in another order, and round a cache's codes after it


def compared(model: str, device: torch.device, new: int = NEW, configurations: tuple = CONFIGURATIONS) -> Iterator[dict[str, Any]]:
    """A row for each (method, params, bits of the cache): relative errors of all logits, and at how many tokens the choice differs beyond a tie."""
    for method, params, kv_bits in configurations:
        ids, here = ran(Request(model, method, params, kv_bits=kv_bits), torch.device("cpu"), new)
        _, eager, graph, why = ran(Request(model, method, params, kv_bits=kv_bits), device, new, ids)
        gaps, apart = here.topk(2).values, (eager - here).abs().amax(-1)
        other = (eager.argmax(-1) != here.argmax(-1)) & (gaps[:, 0] - gaps[:, 1] > 2 * apart)
        row = {"method": method, "kv_bits": kv_bits, "tokens": new, "captured": not why, "why": why, "graph": far(graph, eager), "cpu": far(eager, here)}
        ok = not why and row["graph"] <= GRAPH and row["cpu"] <= DEVICES and not other.any() and bool((graph.argmax(-1) == eager.argmax(-1)).all())
        yield row | {"other_tokens": int(other.sum()), "ok": ok}


def far(a: Tensor, b: Tensor) -> float:
    """Relative error of all logits; infinite where any is not a number."""
    return float((a - b).norm() / b.norm()) if a.isfinite().all() else float("inf")


def ran(request: Request, device: torch.device, new: int, ids: list[int] | None = None) -> tuple:
    """Without ids (the tokens that the loop chose, logits [T, V] of each); with them (ids, logits step by step, logits of the graph, why there is none)."""
    load = Loader(device)
    experiment, method, texts = request.prepare(load.hub)
    with released() as hold, torch.no_grad():
        subject, _ = shown(prepared(experiment, method, texts, load, hold))
        prompt = subject.windows[:1, :PROMPT].to(device)
        with subject.quantized():
            decoder = Decoder(subject.loaded, PROMPT + new + 8, request.kv_bits)
            if ids is None:
                ids = list(decoder.generate(prompt, new))
                return ids, followed(decoder, prompt, ids)
            eager = followed(decoder, prompt, ids)
            decoder.prefill(prompt)
            decoder.capture()
            return ids, eager, followed(decoder, prompt, ids), "" if decoder.graph is not None else decoder.eager or "this device has no graphs"


def followed(decoder: Decoder, prompt: Tensor, ids: list[int]) -> Tensor:
    """Logits [T, V] float32 on the CPU of each step, given these tokens."""
    decoder.prefill(prompt)
    logits = []
    for token in ids:
        decoder.token.fill_(token)
        decoder.step()
        logits.append(decoder.logits[0].float().cpu().clone())
    return torch.stack(logits)


def main() -> int:
    rows = []
    for row in compared("demo", torch.device("cuda")):
        print(json.dumps(row), flush=True)
        rows.append(row)
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
