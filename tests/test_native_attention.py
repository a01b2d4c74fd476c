"""Attention over a low-bit cache in C: every flavour against float64 over what the codes mean, what it refuses, what it must not read, threads and memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from explorer.packed_cache import PackedCache
from kernels import native, native_attention
from kernels.kv_attention import OP, Case, _problem, _reference
from kernels.low_bit_cache import GROUP, LowBitCache
from kernels.native_attention import NATIVE
from kernels.op import serving
from tests.test_native import needs_compiler, supported
from tests.threads import give_back, share_nothing

CPU = torch.device("cpu")
NEAR = 3e-4  # relative error allowed in float32: queries and weights are rounded to 16 bits
CASES = [case for case in OP.cases if case.size * case.bits >= 128]


@pytest.fixture(params=list(native.FLAVOURS))
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of the flavours that this CPU runs, in force for a test; results that are not written stay NaN."""
    if request.param not in supported():
        pytest.skip(f"needs a CPU with {', '.join(native.FLAVOURS[request.param])}")
    empty = torch.empty_like
    monkeypatch.setattr(native, "flavour", lambda: request.param)
    monkeypatch.setattr(torch, "empty_like", lambda x: empty(x).fill_(torch.nan))
    native.library.cache_clear()
    assert native.library()[1] == ""
    yield request.param
    monkeypatch.undo()
    native.library.cache_clear()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads: spans are cut for them, also where there are fewer cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def error(q: torch.Tensor, cache: LowBitCache) -> float:
    """Relative to float64 over `dequantize`."""
    assert NATIVE.refuses(cache) == ""
    found, expected = NATIVE.run(q, NATIVE.pack(cache)), _reference(q, cache)
    assert found.shape == q.shape and found.dtype is q.dtype
    return ((found.double() - expected).norm() / expected.norm()).item()


def wide(cache: LowBitCache) -> LowBitCache:
    """The same in float32, no longer numbers that bfloat16 has."""
    return LowBitCache(*(t if t.dtype is torch.uint8 else t.float() * 1.001 for t in cache.tensors()), cache.bits, cache.counts)


def test_every_flavour_means_what_the_reference_means(flavour: str, threads: int) -> None:
    for case in CASES:
        q, cache = _problem(case, torch.Generator().manual_seed(1))
        assert error(q, cache) < NEAR and error(q, wide(cache)) < NEAR, case
        assert error(q.bfloat16(), cache) < 4e-3 and error(q.half(), cache) < 1e-3, case


def test_tokens_in_16_bits_or_float32_mean_softmax_of_products(flavour: str, threads: int) -> None:
    """Cut out of a cache of several sequences and with room for more; what is beyond its tokens is NaN."""
    generator = torch.Generator().manual_seed(0)
    for batch, rows, heads, size, count in ((1, 2, 7, 64, 1200), (2, 3, 1, 80, 37), (3, 1, 4, 48, 1), (2, 2, 4, 96, 1025), (1, 1, 9, 16, 129)):
        cache = torch.randn(batch, 2, rows, count + 3, size, generator=generator)
        cache[..., count:, :] = torch.nan
        q = torch.randn(batch, rows * heads, size, generator=generator)
        for dtype, near in ((torch.bfloat16, 4e-3), (torch.float32, 1e-6)):
            keys, values = (t[..., :count, :] for t in cache.to(dtype).unbind(1))
            assert native_attention.reads(keys, values)
            found = native_attention.attend(q.to(dtype), keys, values)
            scores = q.to(dtype).double().view(batch, rows, heads, size) @ keys.double().mT / size**0.5
            expected = (scores.softmax(-1) @ values.double()).view(q.shape)
            assert found.dtype is dtype and ((found.double() - expected).norm() / expected.norm()).item() < near, (batch, rows, heads, size, count)


@needs_compiler
def test_attention_reads_what_lies_as_it_expects() -> None:
    keys, values = torch.randn(2, 1, 2, 5, 32)
    assert native_attention.reads(keys, values) and native_attention.reads(keys.bfloat16(), values.bfloat16())
    assert not native_attention.reads(keys.half(), values.half()) and not native_attention.reads(keys[..., :24], values[..., :24])
    assert not native_attention.reads(keys.mT.contiguous().mT, values) and not native_attention.reads(keys, values.expand(3, -1, -1, -1))


def test_any_shape(flavour: str) -> None:
    """Heads of all multiples of 32, any number of heads, spans that end anywhere; two more rows' worth of room than is filled."""
    choose = random.Random(0)
    for seed in range(40):
        bits = choose.choice((8, 4, 2))
        size = GROUP * choose.randint(2 if bits == 2 else 1, 8)
        older, newest = GROUP * choose.choice((0, 1, 2, 3, 4, 5, 9, 18)), choose.randint(1, 150)
        counts = choose.choice((None, (GROUP * choose.randint(0, older // GROUP), choose.randint(1, newest))))
        case = Case(choose.randint(1, 2), choose.randint(1, 3), choose.randint(1, 9), size, older, newest, bits, counts)
        assert error(*_problem(case, torch.Generator().manual_seed(seed))) < NEAR, case


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_filled_part_of_larger_tensors_is_read_where_it_lies(bits: int) -> None:
    """Cuts share memory with the whole, whose rest is no number; what lies otherwise is copied."""
    q, cache = _problem(Case(2, 3, 2, 64, 192, 40, bits), torch.Generator().manual_seed(0))
    expected = NATIVE.run(q, NATIVE.pack(cache))
    room = [torch.full((*t.shape[:2], 2 * t.shape[2], t.shape[3]), 77 if t.dtype is torch.uint8 else torch.nan, dtype=t.dtype) for t in cache.tensors()]
    cuts = [whole[:, :, : t.shape[2]].copy_(t) for whole, t in zip(room, cache.tensors(), strict=True)]
    held = NATIVE.pack(LowBitCache(*cuts, bits))
    assert all(t.data_ptr() == cut.data_ptr() for t, cut in zip(held.tensors.values(), cuts, strict=True))
    assert torch.equal(NATIVE.run(q, held), expected)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in cache.tensors()]
    assert torch.equal(NATIVE.run(q, NATIVE.pack(LowBitCache(*turned, bits))), expected)
    mixed = [*cuts[:2], *cache.tensors()[2:]]
    assert torch.equal(NATIVE.run(q, NATIVE.pack(LowBitCache(*mixed, bits))), expected)


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_sinks_and_large_channels_keep_the_rest(bits: int) -> None:
    """A first token that takes nearly all weight and has tiny values, a channel of keys that is large for all tokens, and scores far apart."""
    q, cache = _problem(Case(1, 2, 4, 128, 640, 33, bits), torch.Generator().manual_seed(2))
    cache.value_scale[:, :, 0] *= 1e-3
    cache.value_low[:, :, 0] *= 1e-3
    cache.key_scale[..., 5] *= 30
    cache.key_low[..., 5] *= 30
    assert error(q, cache) < 2e-3
    cache.keys[:, :, 3] *= 40
    assert error(q, cache) < 2e-3
    assert error(8 * q, cache) < 1e-2, "scores of hundreds"


@needs_compiler
def test_what_is_no_number_stays_with_its_head_or_sequence() -> None:
    q, cache = _problem(Case(2, 2, 2, 64, 96, 33, 4), torch.Generator().manual_seed(0))
    clean = NATIVE.run(q, NATIVE.pack(cache))
    q[0, 1, 7] = torch.nan
    cache.value_low[1, 0, 5, 1] = torch.nan
    cache.keys[1, 1, 3, 9] = torch.nan
    y = NATIVE.run(q, NATIVE.pack(cache))
    assert y[0, 1].isnan().all() and torch.equal(y[0, [0, 2, 3]], clean[0, [0, 2, 3]])
    assert y[1, :2, 32:].isnan().all() and torch.equal(y[1, :2, :32], clean[1, :2, :32]) and y[1, 2:].isnan().all()


@needs_compiler
def test_threads_do_not_share_their_sums() -> None:
    cases = [Case(1, 2, 4, 64, tokens, 33, 4) for tokens in (96, 1024)]
    problems = [_problem(case, torch.Generator().manual_seed(0)) for case in cases * 2]
    share_nothing([partial(NATIVE.run, q, NATIVE.pack(cache)) for q, cache in problems])


@needs_compiler
def test_a_thread_gives_its_memory_back() -> None:
    q, cache = _problem(Case(1, 128, 64, 256, 32, 1, 8), torch.Generator().manual_seed(0))
    give_back(partial(NATIVE.run, q, NATIVE.pack(cache)))


@needs_compiler
def test_what_it_refuses_torch_serves() -> None:
    _, cache = _problem(Case(1, 1, 2, 32, 64, 5, 2), torch.Generator().manual_seed(0))
    form, reasons = serving(OP, cache, CPU)
    assert form.name == "torch" and reasons == ["kv_attention (native): the 8 bytes of a token's codes are fewer than 16"]
    halves = LowBitCache(*(t if t.dtype is torch.uint8 else t.half() for t in _problem(Case(1, 1, 2, 64, 64, 5, 4), torch.Generator())[1].tensors()), 4)
    assert "float16, neither bfloat16 nor float32" in NATIVE.refuses(halves) and serving(OP, halves, CPU)[0].name == "torch"


def test_without_the_library_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention.native, "library", lambda: (None, "it is not here"))
    _, cache = _problem(CASES[0], torch.Generator().manual_seed(0))
    form, reasons = serving(OP, cache, CPU)
    assert form.name == "torch" and reasons == ["kv_attention (native): it is not here"]


@needs_compiler
def test_a_step_cuts_nothing_and_counts_what_is_there() -> None:
    """The explorer's cache hands the same tensors over at every step, also after a prompt of another length and with fewer sequences."""
    cache = PackedCache((2, 3, 2, 64), 200, 4, torch.zeros(1).bfloat16())
    for batch, length in ((3, 100), (3, 30), (1, 180)):
        cache.reset(batch)
        for layer in range(2):
            cache.fill(layer, torch.randn(2, batch, 2, length, 64, generator=torch.Generator().manual_seed(length)).bfloat16())
        cache.filled(length)
        before = cache.seen(length)
        for new in range(length, length + 8):
            cache.make_room(new)
            places = cache.step(new)
            assert all(place.cache is held for place, held in zip(places, before, strict=True))
            assert cache.counts.tolist() == [cache.older, new + 1 - cache.older]
            exact = _reference(q := torch.randn(batch, 4, 64), first_tokens(cache, new + 1, 1))
            pair = cache.newest[1, :, :batch, :, new - cache.older].clone()
            assert (cache.attend(places[1], q, pair).double() - exact).norm() < 2e-3 * exact.norm()


def first_tokens(cache: PackedCache, length: int, layer: int) -> LowBitCache:
    """One layer's first tokens, cut out of the cache's own tensors."""
    parts = [part[layer, : cache.batch] for part in cache.parts]
    older = [t[:, :, : cache.older // (GROUP if i in (1, 2) else 1)] for i, t in enumerate(parts)]
    return LowBitCache(*older, *cache.newest[layer, :, : cache.batch, :, : length - cache.older], cache.bits)
