"""The token loop that is timed: greedy decoding with a static KV cache; on a GPU the step runs as one CUDA graph."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import StaticCache

from explorer.kvcache import kivi_cache
from explorer.models import LoadedModel


class Decoder:
    """Greedy decoding of one sequence. `prefill` reads the prompt, `step` gives one more token. A 16-bit cache is allocated once; one in low bits
    grows, and dequantizes its old part at every step.
    """

    def __init__(self, loaded: LoadedModel, context: int, kv_bits: int = 16) -> None:
        self.model, self.device, self.static = loaded.model, loaded.device, kv_bits == 16
        self.cache = StaticCache(config=self.model.config, max_cache_len=context) if self.static else kivi_cache(self.model.config, kv_bits)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def prefill(self, prompt: Tensor) -> None:
        """Reads prompt [1, T] int64 into an emptied cache and sets the first new token."""
        self.cache.reset()
        self.position.copy_(torch.tensor([prompt.shape[1]]))
        where = torch.arange(prompt.shape[1], device=self.device)
        logits = self.model(prompt, past_key_values=self.cache, cache_position=where, position_ids=where[None], use_cache=True).logits
        self.token.copy_(logits[:, -1:].argmax(-1))

    def _forward(self) -> None:
        out = self.model(self.token, past_key_values=self.cache, cache_position=self.position, position_ids=self.position[None], use_cache=True)
        self.token.copy_(out.logits[:, -1:].argmax(-1))
        self.position += 1

    @torch.no_grad()
    def capture(self) -> None:
        """Records one step as a CUDA graph (after a prefill); does nothing on a CPU or with a cache that grows."""
        if self.device.type != "cuda" or self.graph is not None or not self.static:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._forward()

    @torch.no_grad()
    def step(self) -> None:
        """One more token, in place in `self.token`."""
        if self.graph is None:
            self._forward()
        else:
            self.graph.replay()

    def generate(self, prompt: Tensor, new: int) -> Iterator[int]:
        """Yields `new` greedy token ids after prompt [1, T]."""
        self.prefill(prompt)
        for i in range(new):
            yield int(self.token)
            if i + 1 < new:
                self.step()

    def timed(self, prompt: Tensor, new: int) -> tuple[float, list[float]]:
        """(time to first token, seconds of each further token)."""
        start = self._now()
        self.prefill(prompt)
        marks = [self._now()]
        for _ in range(new - 1):
            self.step()
            marks.append(self._now())
        return marks[0] - start, [b - a for a, b in itertools.pairwise(marks)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
