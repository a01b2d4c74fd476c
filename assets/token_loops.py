"""What a token takes in transformers' own loop and in ours, in turn: `python -m assets.token_loops` writes assets/token_loops.json. Run it on an idle machine.

In each round every loop decodes some tokens after a short context, and then its products and its attention run alone, as often and in the same order. What
a token takes beyond these is the rest: norms, rotations, activations, the choice of the token, and Python. One sequence, on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from explorer import architectures
from explorer.commands import shown
from explorer.decode import TransformersLoop
from explorer.experiment import prepared, released
from explorer.llama import LlamaLoop
from explorer.loader import Loader
from explorer.metrics import Subject
from explorer.metrics.speed import quantile, speedup
from explorer.models import Dense
from explorer.provenance import circumstances
from explorer.request import Request
from kernels.timing import busy

RESULT = Path(__file__).with_suffix(".json")
MODELS = ("demo", "arch:qwen2.5-0.5b")
PROMPT, NEW, ROUNDS = 64, 24, 8
BITS, GROUP = 4, 64
CPU = torch.device("cpu")


class EagerLoop(TransformersLoop):
    """As `generate` decodes unless it is told otherwise: the model's own forward pass, not compiled, over a cache that grows."""

    def _empty(self) -> Cache:
        return DynamicCache(config=self.model.config)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Reads prompt [1, T] int64 into a new cache -> logits of its last token [1, V]."""
        self.cache = self._empty()
        return super().prefill(prompt)


class Arm(NamedTuple):
    """A loop that is timed: who wrote it, in how many bits its weights are, and the calls of its products and its attention after a prefill."""

    loop: Any
    who: str
    weights: str
    parts: Callable[[Any], list[Callable[[], Any]]]


def made(model: str) -> tuple[Subject, list[Arm]]:
    """(the model, which holds what the loops read; transformers' loop in 16 bits, and ours in 16 bits, in 4 bits, and in 4 bits with the head)."""
    experiment, method, texts = Request(model, "rtn", {"bits": BITS, "granularity": "group", "group_size": GROUP}, head_bits=BITS).prepare(Loader().hub)
    with released() as hold:
        subject, _ = shown(prepared(experiment, method, texts, Loader(CPU), hold))
    whole = subject.loaded.model
    if subject.loaded.ref.random:
        architectures.fill(whole, subject.originals, CPU)
    for module in whole.modules():
        if type(module) is Dense:  # ours for a CPU without bfloat16 units; transformers' loop takes torch's
            module.__class__ = nn.Linear
    context = PROMPT + NEW + 8
    arms = []
    for bits, of in ((f"{BITS} bits", dataclasses.replace(subject, head=None)), (f"{BITS} bits, head too", subject)):
        with of.quantized():
            arms.append(Arm(LlamaLoop(whole, context), "ours", bits, own_parts))
    return subject, [
        Arm(EagerLoop(whole, context), "transformers", "16 bits", their_parts),
        Arm(LlamaLoop(whole, context), "ours", "16 bits", own_parts),
        *arms,
    ]


def own_parts(loop: LlamaLoop) -> list[Callable[[], Any]]:
    """Products and attention of one token of our loop, in their order."""
    queries = _random(1, loop.queries, loop.size)
    calls: list[Callable[[], Any]] = []
    for block, attend in zip(loop.blocks, loop.attentions(), strict=True):
        qkv, out, gate_up, down = (partial(p.run, _random(1, p.shape[1])) for p in (block.qkv, block.out, block.gate_up, block.down))
        calls += [qkv, partial(attend, queries), out, gate_up, down]
    return [*calls, partial(loop.head.run, _random(1, loop.head.shape[1]))]


def their_parts(loop: EagerLoop) -> list[Callable[[], Any]]:
    """The same of transformers' loop: torch's linear for each layer, and torch's attention."""
    calls: list[Callable[[], Any]] = []
    for layer, kept in zip(loop.model.model.layers, loop.cache.layers, strict=True):
        attention, mlp, size = layer.self_attn, layer.mlp, kept.keys.shape[-1]
        queries = _random(1, attention.q_proj.out_features // size, 1, size)
        calls += [_linear(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
        calls.append(partial(F.scaled_dot_product_attention, queries, kept.keys, kept.values, enable_gqa=queries.shape[1] != kept.keys.shape[1]))
        calls += [_linear(each) for each in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    return [*calls, _linear(loop.model.lm_head)]


def _linear(layer: nn.Linear) -> Callable[[], Tensor]:
    return partial(F.linear, _random(1, 1, layer.in_features), layer.weight, layer.bias)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@torch.no_grad()
def decoded(loop: Any, prompt: Tensor, new: int) -> list[float]:
    """Seconds of each of `new` greedy tokens after prompt [1, T]."""
    token, seconds = loop.prefill(prompt).max(-1, keepdim=True).indices, []
    for _ in range(new):
        start = time.perf_counter()
        token = loop.step(token).max(-1, keepdim=True).indices
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def alone(calls: list[Callable[[], Any]], times: int) -> list[float]:
    """Seconds of all calls, one after the other, as often as there are tokens."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        for call in calls:
            call()
        seconds.append(time.perf_counter() - start)
    return seconds


def measured(model: str, rounds: int = ROUNDS, new: int = NEW) -> list[dict[str, Any]]:
    """A row for each loop of a model, the first one transformers': milliseconds, and how many times as fast as the first. In every second round the loops
    run in the opposite order, so that work beside them that comes and goes meets all alike.
    """
    subject, arms = made(model)
    prompt, tokens, parts = subject.windows[:1, :PROMPT], [[] for _ in arms], [[] for _ in arms]
    for done in range(rounds + 1):
        for i in range(len(arms))[:: -1 if done % 2 else 1]:
            steps = decoded(arms[i].loop, prompt, new)
            both = alone(arms[i].parts(arms[i].loop), new)
            if done:  # the first round warms up
                tokens[i].append(steps)
                parts[i].append(both)
    return [row(model, arm, (tokens[i], tokens[0]), (parts[i], parts[0])) for i, arm in enumerate(arms)]


def row(model: str, arm: Arm, tokens: tuple[list, list], parts: tuple[list, list]) -> dict[str, Any]:
    """tokens and parts: seconds [round][token] of this loop, and of the one it is compared with."""
    single = [1e3 * seconds for steps in tokens[0] for seconds in steps]
    middle = [[statistics.median(steps) for steps in each] for each in (*tokens, *parts)]
    own, other = ([token - part for token, part in zip(*pair, strict=True)] for pair in ((middle[0], middle[2]), (middle[1], middle[3])))
    return {
        "model": model, "loop": arm.who, "weights": arm.weights, "ms": statistics.median(single), "p20": quantile(single, 0.2), "p80": quantile(single, 0.8),
        "n": len(single), "parts_ms": 1e3 * statistics.median(middle[2]), "rest_ms": 1e3 * statistics.median(own),
        "times": ratio(middle[1], middle[0]), "rest_times": ratio(other, own),
    }  # fmt: skip


def ratio(slow: list[float], fast: list[float]) -> list[float] | None:
    """[mean, low, high] of a ratio a round, as `speedup` has it; None where noise leaves a time of 0 or less."""
    if min(*slow, *fast) <= 0:
        return None
    found = speedup("", [a / b for a, b in zip(slow, fast, strict=True)])
    return [found.value, found.low, found.high]


def main(argv: list[str] | None = None) -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--models", nargs="+", default=MODELS)
    top.add_argument("--rounds", type=int, default=ROUNDS, help="at least 2")
    top.add_argument("--new", type=int, default=NEW, help=f"tokens a loop decodes in a round, at most {NEW}")
    top.add_argument("--output", type=Path, default=RESULT)
    args = top.parse_args(argv)
    record = circumstances(CPU) | {"transformers": transformers.__version__, "busy": busy(), "context": PROMPT, "new": args.new, "rounds": args.rounds}
    rows = [found for model in args.models for found in measured(model, args.rounds, args.new)]
    args.output.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    print(args.output.read_text())


if __name__ == "__main__":
    main()
