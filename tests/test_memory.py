"""What is held at once: logits, lattice tables and a teacher in parts that give the same numbers; and that the estimates count what was measured."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pretended_gpu
import pytest
import torch
from pretended_gpu import gpu  # noqa: F401 - a fixture
from torch import nn

from explorer import experiment, lattice, likelihood, loader, models, request, sizes
from explorer.experiment import LocalRunner, last_report, outdated
from explorer.likelihood import losses, passes
from explorer.methods import build, qat
from explorer.metrics import Subject, metrics
from explorer.metrics.quality import token_statistics
from explorer.metrics.size import by_part
from explorer.models import LoadedModel, linears
from explorer.qlinear import put
from explorer.records import InputError, ModelRef
from explorer.store import Store
from kernels.op import Op, ops
from kernels.product import Case, random_weight
from tests.measuring import drained


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabulary", [500, 4096])
def test_slices_of_logits_give_the_same_bits(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (4 * random(37, vocabulary, seed=seed).bfloat16() for seed in (0, 1))
    b[5, 3], targets = torch.nan, torch.arange(37)
    found = []
    for few in (10**9, 4 * vocabulary, 1):  # all rows, four, one
        monkeypatch.setattr(likelihood, "AT_ONCE", few)
        found.append([*token_statistics(a, b, targets).values(), losses(b, targets)])
    for whole, *parts in zip(*found, strict=True):
        assert len(whole) == 37 and all(torch.equal(whole.nan_to_num(7.0), part.nan_to_num(7.0)) for part in parts)
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(found[0][2].double(), divergence, rtol=1e-4, equal_nan=True) and found[0][3][5].isnan()


def test_copies_of_logits_do_not_grow_with_them(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(likelihood, "AT_ONCE", 2**14)
    a, b = (torch.zeros(512, 1024, dtype=torch.bfloat16, device=gpu) for _ in range(2))
    targets = torch.zeros(512, dtype=torch.long, device=gpu)
    before = pretended_gpu.held.bytes
    pretended_gpu.held.start()
    token_statistics(a, b, targets)
    losses(b, targets)
    assert pretended_gpu.held.peak - before < 30 * 2**14 + 20 * 4 * 512


@pytest.mark.parametrize(("vocabulary", "each"), [(4096, 2), (50_000, 1)])
def test_windows_go_together_while_their_logits_are_few(vocabulary: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "PASS", 2**17)
    model: Any = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(vocabulary, 1))
    assert [len(part) for part in passes(model, torch.zeros(4, 16), 2)] == [each] * (4 // each)


def test_lattice_points_reach_as_far_as_their_patterns_and_a_shift() -> None:
    """Odd quarters up to 11/4, as 4-bit codes 2 to 13."""
    points = lattice.coordinates(*lattice.nearest_point(9 * torch.randn(4096, lattice.WIDTH, generator=torch.Generator().manual_seed(0))))
    assert points.abs().max() == 11 / 4 and ((4 * points) % 2 == 1).all()
    assert (lattice.to_codes(points).min(), lattice.to_codes(points).max()) == (2, 13)


def test_lattice_points_looked_up_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = 1.2 * random(1000, 8)
    whole = lattice.nearest_point(x)
    monkeypatch.setattr(lattice, "ROWS", 96)
    seen, nearest = [], lattice._nearest
    monkeypatch.setattr(lattice, "_nearest", lambda rows: seen.append(len(rows)) or nearest(rows))
    assert all(torch.equal(a, b) for a, b in zip(whole, lattice.nearest_point(x), strict=True))
    assert seen == [96] * 10 + [40] and [tuple(t.shape) for t in whole] == [(1000,), (1000, 8), (1000,)]


class Tiny(nn.Module):
    """A model of one layer that is called as a language model is; it counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.runs = nn.Embedding.from_pretrained(random(50, 32)), nn.Linear(32, 32, bias=False), 0
        self.layer.weight = nn.Parameter(random(32, 32, seed=1))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, tokens: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.runs += 1
        return SimpleNamespace(logits=self.layer(self.embed(tokens)) @ self.embed.weight.T)


def test_a_teacher_that_is_not_kept_teaches_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, found = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0)), []
    batch = 4 * 16 * 50 * 2  # bytes of what is taught of four windows
    for kept, times in ((10 * batch, 2), (batch, 4), (0, 6)):
        monkeypatch.setattr(qat, "KEPT", kept)
        model = Tiny()
        own = model.layer
        codes, lost = drained(
            build("qat", {"steps": 6, "group_size": 32}).train(model, {"layer": own}, lambda name, layer, m=model: setattr(m, name, layer), rows)
        )
        assert model.runs == 6 + times
        found.append((codes["layer"].codes, lost))
    assert all(torch.equal(found[0][0], codes) and lost == found[0][1] for codes, lost in found[1:]) and found[0][1][-1] < found[0][1][0]


def test_a_training_that_does_not_fit_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "free_memory", lambda device: 9 * 10**8)
    model = Tiny()
    steps = build("qat", {"steps": 1, "group_size": 32}).train(
        model, {"layer": model.layer}, functools.partial(put, model), torch.zeros(4, 16, dtype=torch.long)
    )
    with pytest.raises(InputError, match=r"takes about 1\.0 GB beside the model \(22 bytes a weight\), and this machine has 0\.9 GB free\. Choose a smaller"):
        next(steps)
    assert model.runs == 0


def test_a_training_that_does_not_fit_is_refused_before_a_weight_is_read(store: Store, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is not loaded, by run and by a task, with the numbers; what is stored is shown all the same, and a method that trains none runs."""
    asked, few = (str(tiny_folder), "qat", {"steps": 1, "group_size": 32}), {"sequences": 2, "tokens": 1024, "length": 256}
    last_report(LocalRunner(store).run(*asked, **few))
    others, read = asked[2] | {"steps": 2}, models.load
    with monkeypatch.context() as patch:
        patch.setattr(loader, "free_memory", lambda device: 10**9)
        patch.setattr(models, "load", lambda *given: pytest.fail("weights were read"))
        runner = LocalRunner(store)
        assert last_report(runner.run(*asked, **few)).provenance["from_store"]
        for work in (runner.run(*asked[:2], others, **few), runner.do("failure", {"model": asked[0], "method": "qat", "params": others, "options": few})):
            with pytest.raises(InputError, match=r"Training 0\.00 billion weights takes about 1\.\d GB .* this machine has 1\.0 GB free"):
                list(work)
        patch.setattr(models, "load", read)
        assert last_report(runner.run(asked[0], "rtn", {"group_size": 32}, **few)).find("perplexity")


def test_memory_is_looked_at_only_for_what_lacked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(experiment, "free_memory", lambda device: asked.append(device) or 100)
    cpu = torch.device("cpu")
    assert not outdated({"device": "cpu"}, cpu) and not asked
    assert outdated({"needs": 100}, cpu) and not outdated({"needs": 101}, cpu) and asked == [cpu, cpu]


def test_estimates_count_logits_and_square_matrices() -> None:
    tensors = [("model.embed_tokens.weight", "BF16", (128256, 64)), ("model.norm.weight", "BF16", (64,)), ("model.layers.0.down.weight", "BF16", (64, 256))]
    weight = sizes.Weight.of(tensors)
    assert (weight.vocabulary, weight.widest, weight.largest) == (128256, 256, 64 * 256) and sizes.WINDOW == request.LONGEST
    assert sizes.beside(weight) == 20 * 64 * 256 + 20 * 256**2 and sizes.beside(sizes.Weight({}, 256 * 64, 0, 0, 64)) == 48 * 256 * 64
    assert sizes.scoring(128256) == 6 * 128256 * 2048 and sizes.scoring(4096) == 2 * 6 * 4096 * 2048
    for estimate in (sizes.whole, sizes.offloaded):
        assert estimate(weight, True) > sizes.scoring(128256) + sizes.ROOM


@pytest.mark.parametrize("limit", [2**19, 2**20])
def test_scoring_takes_what_the_estimates_count_a_logit(limit: int, gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Of a vocabulary so large that activations are little beside it; one window a pass, and two."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(sizes, "PASS", limit)
    monkeypatch.setattr(likelihood, "AT_ONCE", 2**14)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, head_dim=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False).to(gpu)
    loaded = LoadedModel(ModelRef("tiny", "0"), model, None, gpu, 64)
    rows = torch.randint(0, 8192, (4, 64), generator=torch.Generator().manual_seed(0)).to(gpu)
    subject = Subject(loaded, {}, {}, linears(model), rows, 0.0, kv_bits=4)  # scored twice, the second time in parts
    before = pretended_gpu.held.bytes
    pretended_gpu.held.start()
    drained(metrics()["quality"].measure(subject))
    passed = limit if limit >= 2 * 64 * 8192 else 64 * 8192
    assert 4 * passed < pretended_gpu.held.peak - before < sizes.LOGIT * passed + 30 * 2**14 + 2**19


@pytest.mark.parametrize("op", [op for op in ops().values() if isinstance(op.cases[0], Case)], ids=lambda op: op.name)
def test_every_form_says_which_of_its_tensors_are_codes(op: Op) -> None:
    """They hold all bits of the codes, also where a form keeps them in planes, and a copy in 16 bits is called one."""
    for form, case in itertools.product(op.forms(), op.cases):
        weight = random_weight(replace(case, n=128, k=1024), torch.Generator().manual_seed(0))
        if not form.refuses(weight):
            found = by_part([{name: t.numel() * t.element_size() for name, t in form.pack(weight).tensors.items()}])
            assert found["codes"] + found["copies"] >= case.bits * weight.codes.numel() / 8, (form.name, case, found)
            assert bool(found["copies"]) == (form.name == "16-bit copy")
    assert by_part([{"codes": 8, "kept": 1, "keep": 2}]) == {"codes": 9, "scales": 2}, "LLM.int8's outlier columns are codes as well"
