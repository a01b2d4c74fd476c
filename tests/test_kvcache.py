"""The low-bit KV cache: packing, what attention sees, what it costs, and what the model loses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Cache
from transformers.cache_utils import QuantizedLayer

from explorer import models
from explorer.cache_sizes import GROUP, WINDOW, packed_tokens
from explorer.decode import TransformersLoop
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub
from explorer.kvcache import Chunk, KiviLayer, bytes_at, chunked_logits, kivi_cache, pack, unpack
from explorer.llama import LlamaLoop
from explorer.loader import Loader
from explorer.models import LoadedModel, reading
from explorer.packed_cache import PackedCache
from explorer.records import InputError
from explorer.store import Store
from tests.architectures import make
from tests.test_decode import model_of, prompt_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return models.load(models.resolve("demo", Hub()), CPU, Hub())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_round_trips_without_waste(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, 5, 64), dtype=torch.uint8)
    assert pack(codes, bits).shape == (2, 3, 5, 8 * bits) and torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [2, 3])
def test_chunk_is_asymmetric_rounding_in_groups_along_one_dimension(bits: int, dim: int) -> None:
    """Against a plain loop in float64: every group spans its own minimum to maximum."""
    x = torch.randn(1, 2, GROUP, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    found = Chunk(x, bits, dim).states().double()
    groups = x.double().movedim(dim, -1).reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    expected = ((groups - low) / step).round() * step + low
    assert ((found.movedim(dim, -1).reshape(-1, GROUP) - expected).abs() <= 1.01 * step * 1e-3 + 1e-6).float().mean() > 0.999


def test_newest_tokens_are_exact_and_older_ones_rounded() -> None:
    layer, generator = KiviLayer(2), torch.Generator().manual_seed(1)
    seen = torch.empty(1, 2, 0, 32)
    for length in (50, 1, 1, 40, 7, 32, 1):
        new = torch.randn(1, 2, length, 32, generator=generator)
        seen = torch.cat([seen, new], -2)
        keys, values = layer.update(new, new)
        total = seen.shape[-2]
        assert keys.shape == values.shape == seen.shape and layer.get_seq_length() == total
        exact = layer.keys.shape[-2]
        assert WINDOW <= exact < WINDOW + GROUP or total == exact < WINDOW + GROUP
        assert torch.equal(keys[..., total - exact :, :], seen[..., total - exact :, :])
        if exact < total:
            assert not torch.equal(keys[..., : total - exact, :], seen[..., : total - exact, :])


class Theirs(QuantizedLayer):
    """transformers' low-bit cache over our rounding: what a prompt attends to, and when, is theirs."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Chunk:
        return Chunk(tensor, self.nbits, axis)

    def _dequantize(self, chunk: Chunk) -> torch.Tensor:
        return chunk.states()


@torch.no_grad()
def test_a_prompt_attends_to_exact_keys_as_in_transformers_own_cache() -> None:
    model, ids = model_of("llama"), prompt_of(1, 97)
    own, theirs, cache = LlamaLoop(model, 97, 2), TransformersLoop(model, 97, 2), Cache(layers=[Theirs(2, 2, 3) for _ in range(2)])
    expected = model(ids[:, :96], use_cache=True, **reading(model, cache)).logits[:, -1]
    for loop in (own, theirs):
        assert (loop.prefill(ids[:, :96]) - expected).norm() < 1e-5 * expected.norm()
    steps = [loop.step(ids[:, 96:]) for loop in (own, theirs)]
    exact = model(ids, use_cache=False).logits[:, -1]
    assert all((step - exact).norm() > 1e-3 * exact.norm() for step in steps), "the token after it meets rounded ones"


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 40, 70])
def test_reading_in_parts_is_writing_token_by_token(prompt: int) -> None:
    model, ids = model_of("llama"), prompt_of(2, 100)
    cache, start = kivi_cache(model.config, 2), max(1, prompt)
    read = lambda part: model(part, use_cache=True, **reading(model, cache)).logits  # noqa: E731
    expected = torch.cat([read(ids[:, :start]), *(read(ids[:, i : i + 1]) for i in range(start, 100))], 1)
    assert (chunked_logits(model, ids, 2, prompt) - expected).norm() < 1e-3 * expected.norm()


def test_keys_with_a_large_channel_want_scales_per_channel() -> None:
    """KIVI's reason: one channel is large for all tokens, so rounding along the channels of a token drowns the others."""
    x = torch.randn(1, 1, GROUP, 64, generator=torch.Generator().manual_seed(2))
    x[..., 5] += 40
    rest = [c for c in range(64) if c != 5]
    per_channel, per_token = ((Chunk(x, 4, dim).states() - x)[..., rest].norm() for dim in (2, 3))
    assert per_channel < 0.5 * per_token


def test_computed_bytes_are_the_measured_ones(demo: LoadedModel) -> None:
    for bits in (2, 4, 8):
        for tokens in (40, 64, 200):
            cache = kivi_cache(demo.model.config, bits)
            demo.model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True, **reading(demo.model, cache))
            assert sum(layer.nbytes() for layer in cache.layers) == bytes_at(demo.model.config, tokens, bits)


def test_the_packed_cache_holds_the_computed_bytes_and_a_whole_window(demo: LoadedModel) -> None:
    """A window of 64 tokens is there from the start, so that a group can fill before it is packed."""
    for bits, tokens in ((2, 40), (4, 70), (8, 200)):
        cache = PackedCache((6, 1, 2, 64), tokens, bits, torch.zeros(1).bfloat16())
        spare, one = min(tokens, WINDOW + GROUP) - (tokens - packed_tokens(tokens)), bytes_at(demo.model.config, 1, 16)
        assert cache.nbytes() == bytes_at(demo.model.config, tokens, bits) + spare * one + cache.counts.nbytes + cache.packing.nbytes


@torch.no_grad()
def test_loss_grows_as_bits_fall_and_short_contexts_are_exact(demo: LoadedModel) -> None:
    text = "The database server stores each table in a file, and every index in another one. " * 12
    rows = models.windows(demo, text, 192, 192)
    reference = demo.model(rows).logits.float().log_softmax(-1)
    divergence = []
    for bits in (8, 4, 2):
        found = chunked_logits(demo.model, rows, bits).float().log_softmax(-1)
        exact = WINDOW + GROUP - 1
        assert (found[:, :exact] - reference[:, :exact]).abs().max() < 0.25, "the first part meets no rounded key; only bf16 sums may differ"
        divergence.append((reference.exp() * (reference - found)).sum(-1).mean().item())
    assert divergence[0] < divergence[1] < divergence[2] and divergence[0] < 0.01


def test_cache_bits_are_part_of_the_experiment(tmp_path: Path, tiny_folder: Path) -> None:
    store = Store(tmp_path / "r.db")
    runner = LocalRunner(store, Loader(CPU))
    base, small = (last_report(runner.run(str(tiny_folder), "none", {}, kv_bits=bits, tokens=2048)) for bits in (16, 4))
    store.close()
    assert base.experiment.spec.is_baseline and not small.experiment.spec.is_baseline
    assert small.name == "16-bit weights, KV 4-bit" and small.value("kld_mean") > 0 == base.value("kld_mean")
    assert small.value("memory_kv_cache") < 0.4 * base.value("memory_kv_cache")
    with pytest.raises(InputError, match="KV cache takes"):
        last_report(runner.run(str(tiny_folder), "none", {}, kv_bits=3))


def test_heads_that_no_group_divides_are_refused_with_a_sentence(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "odd", num_attention_heads=4, num_key_value_heads=2, head_dim=40, num_hidden_layers=1)
    with pytest.raises(InputError, match="groups 32 channels, and this model's heads have 40; leave the cache at 16 bits"):
        last_report(LocalRunner(Store(tmp_path / "r.db")).run(str(folder), "rtn", {"group_size": 32}, kv_bits=4))
