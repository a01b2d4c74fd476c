"""The order of GPU calls in the token loop, played without a GPU: when the host waits, what a graph replays, when it must be captured anew."""

from __future__ import annotations

import contextlib

import pytest
import torch

from explorer import llama
from explorer.decode import Decoder
from kernels.token_step import add_and_norm, gated, turn_and_store
from tests.test_decode import loaded_of, model_of, prompt_of


class FakeCuda:
    """Stands in for torch.cuda: counts waits, gives events a clock of their own, and replays a captured step by running it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits, self.clock, self.replays, self.step = 0, 0.0, 0, None
        outer = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                outer.clock += 2.0
                self.at = outer.clock

            def elapsed_time(self, later: Event) -> float:
                assert outer.waits == 2, "read only once all is settled"
                return later.at - self.at

        class Stream:
            def wait_stream(self, other: object) -> None:
                """Nothing runs beside anything here."""

        class Graph:
            def replay(self) -> None:
                outer.replays += 1
                outer.step()

        for name, item in {
            "synchronize": lambda device: setattr(outer, "waits", outer.waits + 1), "Event": Event, "Stream": Stream, "CUDAGraph": Graph,
            "current_stream": Stream, "stream": lambda stream: contextlib.nullcontext(), "graph": lambda graph, **_: contextlib.nullcontext(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, item)


def played(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU for this decoder, whose replays run the step on the device alone: what the host counts must be counted by `Decoder.step`."""
    fake = FakeCuda(monkeypatch)
    decoder.device = torch.device("cuda")

    def run() -> None:
        length = decoder.forward.length
        decoder._forward()
        decoder.forward.length = length

    fake.step = torch.no_grad()(run)
    return fake


def test_on_a_gpu_the_host_waits_twice_a_run_and_a_graph_replays_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, without a GPU: capture, a new prefill, replays that give the tokens of plain steps, a new graph for a new batch."""
    model, ids = model_of("llama"), prompt_of(2, 8)
    plain = Decoder(loaded_of(model), 24, batch=2)
    expected = [list(plain.generate(ids[:1], 6)), plain.timed(ids, 6) and plain.token.clone()]
    monkeypatch.setattr(llama.LlamaLoop.__init__, "__defaults__", (16, 1, True))
    decoder = Decoder(loaded_of(model), 24, batch=2)
    fake = played(decoder, monkeypatch)
    decoder.prefill(ids[:1])
    decoder.capture()
    assert list(decoder.generate(ids[:1], 6)) == expected[0] and fake.replays == 5
    first, rest = decoder.timed(ids, 6)
    assert fake.waits == 2 and fake.replays == 5 and decoder.graph is None, "another batch needs another graph"
    assert first == 0.002 and rest == pytest.approx([0.002] * 5) and torch.equal(decoder.token, expected[1])
    decoder.capture()
    decoder.prefill(ids)
    for _ in range(16):
        decoder.step()
    assert fake.replays == 21
    with pytest.raises(ValueError, match="is full"):
        decoder.step()


def test_a_group_of_a_packed_cache_is_packed_between_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of("llama"), prompt_of(1, 60)
    expected = list(Decoder(loaded_of(model), 72, 4).generate(ids, 10))
    monkeypatch.setattr(llama.LlamaLoop.__init__, "__defaults__", (16, 1, True))
    decoder = Decoder(loaded_of(model), 72, 4)
    fake = played(decoder, monkeypatch)
    decoder.prefill(ids)
    decoder.capture()
    packing, inside = decoder.forward.packed.make_room, []
    monkeypatch.setattr(decoder.forward.packed, "make_room", lambda length: inside.append(decoder.forward.packed.older) or packing(length))
    assert list(decoder.generate(ids, 10)) == expected and fake.replays == 9
    # `step` asks before each replay, and the replayed step finds nothing left to pack.
    assert inside == [0] * 7 + [32] * 11 and decoder.forward.packed.counts.tolist() == [32, 37]


@pytest.mark.parametrize("size", [24, 64])
def test_what_a_step_does_between_products_is_plain_torch(size: int) -> None:
    """Heads and rows of sizes that no power of two divides; float16, where the interpreter rounds as a GPU does."""
    generator = torch.Generator().manual_seed(size)
    rows, cache = torch.randn(2, 7 * size, generator=generator).half(), torch.zeros(3, 2, 2, 5, size).half()
    table, position = torch.randn(2, 5, 2, size // 2, generator=generator).half(), torch.tensor([3])
    queries = turn_and_store(rows, table, position, cache[:2], 3)
    heads, (cosine, sine) = rows.view(2, 7, 2, size // 2).float(), table[:, 3].float()
    turned = torch.cat([heads[:, :5] * cosine + heads[:, :5].flip(2) * sine, heads[:, 5:]], 1).flatten(2)
    assert torch.allclose(queries.float(), turned[:, :3], atol=1e-2) and not cache[2].any() and not cache[:, :, :, [0, 1, 2, 4]].any()
    assert torch.allclose(cache[:2, :, :, 3].float(), turned[:, 3:].view(2, 2, 2, size), atol=1e-2)
    hidden, change, weight = rows.clone(), rows.flip(1), torch.rand(7 * size, generator=generator).half()
    normed = add_and_norm(hidden, change, weight, 1e-5)
    assert torch.equal(hidden, rows + change)
    assert torch.allclose(normed.float(), torch.nn.functional.rms_norm(hidden.float(), (7 * size,), weight.float(), 1e-5), atol=1e-2)
    gate, up = rows[:, : 6 * size].float().chunk(2, 1)
    assert torch.allclose(gated(rows[:, : 6 * size].contiguous()).float(), torch.nn.functional.silu(gate) * up, atol=1e-2)
