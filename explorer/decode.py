"""The token loop that is timed: greedy decoding by our own forward pass or transformers'; on a GPU the step runs as one CUDA graph."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, StaticCache

from explorer import llama
from explorer.kvcache import kivi_cache
from explorer.models import LoadedModel, reading
from explorer.offload import streams
from kernels.timing import CAPTURE


class TransformersLoop:
    """Forward passes through transformers, for architectures that no loop of our own serves. The interface is LlamaLoop's. Its cache in low bits
    is dequantized for every token, because transformers' attention takes keys and values as they are.
    """

    name = "transformers"
    copies = beyond = 0

    def __init__(self, model: Any, context: int, kv_bits: int = 16, batch: int = 1) -> None:
        self.model, self.context, self.kv_bits, self.batch = model, context, kv_bits, batch
        self.static, self.length = kv_bits == 16, 0
        self.attention = "transformers' attention" if self.static else "transformers' attention over the dequantized cache"
        self.cache = self._empty()
        self.position = torch.zeros(1, dtype=torch.long, device=model.device)

    def _empty(self) -> Cache:
        return StaticCache(config=self.model.config, max_cache_len=self.context) if self.static else kivi_cache(self.model.config, self.kv_bits)

    def prefill(self, prompt: Tensor) -> Tensor:
        """Reads prompt [B, T] int64 into an emptied cache -> logits of its last tokens [B, V]."""
        if prompt.shape[0] != self.batch:  # a static cache keeps the batch of its first use
            self.cache, self.batch = self._empty(), prompt.shape[0]
        self.cache.reset()
        self.length = prompt.shape[1]
        self.position.fill_(self.length)
        return self._forward(prompt, torch.arange(prompt.shape[1], device=prompt.device))

    def cache_bytes(self) -> int:
        """Bytes that the cache holds now."""
        layers = [layer for layer in self.cache.layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes if self.static else layer.nbytes() for layer in layers)

    def prepare(self) -> None:
        """Nothing comes before a step."""

    def step(self, token: Tensor) -> Tensor:
        """One more token a sequence, [B, 1] int64 -> logits [B, V]."""
        logits = self._forward(token, self.position)
        self.position += 1
        self.length += 1
        return logits

    def _forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        at = {"cache_position": where, "position_ids": where.expand(len(tokens), -1)}
        return self.model(tokens, use_cache=True, logits_to_keep=1, **at, **reading(self.model, self.cache)).logits[:, -1]


class Decoder:
    """Greedy decoding of at most `batch` sequences that advance together, made while the layers that shall run are in place.

    `prefill` reads the prompt, `step` gives one more token each, in `token` [B, 1], and the logits it was taken from in `logits` [B, V]. `loop` names
    the forward pass that runs, `attention` what reads the cache, and `why` says why it is not our own loop. `eager` says why a GPU launches each kernel of
    a step anew instead of replaying a graph; "" where it replays one, and on a CPU. `beyond`: see `Product`, of all products.
    """

    def __init__(self, loaded: LoadedModel, context: int, kv_bits: int = 16, batch: int = 1) -> None:
        self.device = loaded.device
        self.why = llama.refuses(loaded.model, context)
        self.forward = (TransformersLoop if self.why else llama.LlamaLoop)(loaded.model, context, kv_bits, batch)
        self.loop, self.copies, self.attention = self.forward.name, self.forward.copies, self.forward.attention
        self.beyond = self.forward.beyond
        self.tokens = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        self.token = self.tokens
        self.logits: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.written: Tensor | None = None  # where a replay leaves its logits
        self.eager = _uncaptured(loaded.model, self.forward.static) if self.device.type == "cuda" else ""

    def told(self) -> str:
        """The loop in words, and what it lacks."""
        loop = f"{self.loop}: {self.why}" if self.why else self.loop
        return f"{loop}, without a CUDA graph: {self.eager}" if self.eager else loop

    @torch.no_grad()
    def prefill(self, prompt: Tensor) -> None:
        """Reads prompt [B, T] int64 into an emptied cache and sets the first new token."""
        if len(prompt) != len(self.token):  # a graph belongs to its batch
            self.token, self.graph = self.tokens[: len(prompt)], None
        self.logits = self.forward.prefill(prompt)
        self._choose()

    def _forward(self) -> None:
        self.logits = self.forward.step(self.token)
        self._choose()

    def _choose(self) -> None:
        # The first of equal maxima, as argmax, which takes five times as long on bfloat16.
        self.token.copy_(self.logits.max(-1, keepdim=True).indices)

    @torch.no_grad()
    def capture(self) -> None:
        """Records one step as a CUDA graph (after a prefill); does nothing on a CPU and where `eager` says why not. The next call is a prefill.

        Packing a full group of a low-bit cache stays outside the graph, in `prepare`: it happens at one token in 32.
        """
        if self.device.type != "cuda" or self.graph is not None or self.eager:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        self.forward.prepare()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode=CAPTURE):
            self._forward()
        self.written = self.logits

    @torch.no_grad()
    def step(self) -> None:
        """One more token, in place in `self.token`. ValueError when the cache is full: a graph would write beyond it unseen."""
        if self.forward.length >= self.forward.context:
            raise ValueError(f"the cache holds {self.forward.context} tokens and is full")
        self.forward.prepare()
        if self.graph is None:
            self._forward()
        else:
            self.graph.replay()
            self.logits = self.written  # a prefill before it left others there
            self.forward.length += 1

    def generate(self, prompt: Tensor, new: int) -> Iterator[int]:
        """Yields `new` greedy token ids after prompt [1, T]."""
        self.prefill(prompt)
        for i in range(new):
            yield int(self.token)
            if i + 1 < new:
                self.step()

    def timed(self, prompt: Tensor, new: int) -> tuple[float, list[float]]:
        """(time to first token, seconds of each further token). On a GPU by events: the host waits once, at the end."""
        self._settle()
        marks = [self._mark()]
        self.prefill(prompt)
        marks.append(self._mark())
        for _ in range(new - 1):
            self.step()
            marks.append(self._mark())
        self._settle()
        first, *rest = [_between(a, b) for a, b in itertools.pairwise(marks)]
        return first, rest

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _uncaptured(model: nn.Module, static: bool) -> str:
    """Why no CUDA graph can hold a step of the model as it stands, "" where one can."""
    if streams(model):
        return "weights come to the device at each use"
    if any(getattr(module, "looks", False) for module in model.modules()):
        return "outlier columns are looked for in each input, and the host waits for how many there are"
    return "" if static else "shapes change with the cache's length"


def _between(start: Any, end: Any) -> float:
    """Seconds between two marks: times of the host's clock, or settled CUDA events."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
