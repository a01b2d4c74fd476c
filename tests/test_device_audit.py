"""What a GPU would refuse: tensors of two devices in one operation, and a host that waits while a CUDA graph is recorded. See pretended_gpu.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pretended_gpu import OnGpu, Refused, gpu  # noqa: F401 - a fixture

from explorer.decode import Decoder
from explorer.input_statistics import InputStatistics
from explorer.llama import LlamaLoop
from explorer.methods import build, methods
from explorer.metrics import Subject, metrics
from explorer.models import LoadedModel, linears
from explorer.qlinear import quantized_head
from explorer.quantizing import quantize
from explorer.records import ModelRef, TextRef
from kernels.op import choose
from tests.measuring import drained


@pytest.fixture
def loaded(gpu: torch.device) -> LoadedModel:  # noqa: F811
    """A Llama of one layer with random weights on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False).to(gpu)
    return LoadedModel(ModelRef("tiny", "0"), model, None, gpu, 16)


def quantized(loaded: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...] = ("",), **params: object) -> Subject:
    """What metrics measure, made of random windows and of the layers whose names end so."""
    rows = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0)).to(loaded.device)
    monkeypatch.setattr("explorer.models.windows", lambda *_: rows)
    originals = {path: layer for path, layer in linears(loaded.model).items() if path.endswith(layers)}
    subject = Subject(loaded, {}, {}, originals, rows, 0.0)
    return drained(quantize(subject, build(name, params), TextRef("bundled", "0", 64, 16), ""))[0]


@pytest.mark.parametrize("name", [name for name in methods() if name != "none"])
def test_every_method_stays_on_one_device_and_has_a_kernel(name: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = quantized(loaded, name, monkeypatch, ("q_proj", "down_proj"), **({"steps": 2} if name == "qat" else {}))
    assert len(subject.layers) == 2 and all("triton" in layer.kernel for layer in subject.layers.values())
    with torch.no_grad(), subject.quantized():
        logits = loaded.model(subject.windows[:1]).logits
    assert isinstance(logits, OnGpu) and logits.isfinite().all()


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
def test_searches_of_k_quants_stay_on_one_device(name: str, importance: bool, gpu: torch.device) -> None:  # noqa: F811
    """The tiny model's rows are too short for super-blocks; a row of 512 has two, one of 96 none."""
    for width in (512, 96):
        weight, inputs = torch.randn(16, width).to(gpu), torch.randn(8, width).to(gpu)
        q = build("kquant", {"format": name, "importance": importance}).quantize(weight, InputStatistics.of(inputs) if importance else None)
        form = choose(q.weight(), gpu)[1]
        assert form.name == "triton" and isinstance(q.codes, OnGpu) and all(isinstance(t, OnGpu) for t in form.pack(q.weight()).tensors.values())


def test_every_metric_stays_on_one_device(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from explorer.metrics import speed

    for name, value in {"PROMPT": 8, "NEW": 3, "ROUNDS": 2}.items():
        monkeypatch.setattr(speed, name, value)
    subject = quantized(loaded, "rtn", monkeypatch)
    for name, metric in metrics().items():
        if name not in ("sample", "training"):  # texts need a tokenizer, and nothing was trained
            found = {event.metric for event in metric.measure(subject) if not hasattr(event, "stage")}
            assert found, name
            assert name != "speed" or {"decode_speedup", "first_token_speedup"} <= found, "two graphs, each replayed beside the other"


@pytest.mark.parametrize(("name", "kv_bits", "head_bits"), [("none", 16, 16), ("rtn", 4, 8), ("dynamic_int8", 16, 16)])
def test_a_graph_of_the_token_loop_gives_the_tokens_of_the_loop(
    name: str, kv_bits: int, head_bits: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded without a wait or a copy, and replayed with nothing but its own tensors; a cache in low bits packs a group between two replays."""
    subject = quantized(loaded, name, monkeypatch) if name != "none" else Subject(loaded, {}, {}, linears(loaded.model), torch.zeros(1, 1), 0.0)
    if head_bits < 16:
        subject = dataclasses.replace(subject, head=quantized_head(loaded.model.lm_head, head_bits, loaded.device))
    prompt = torch.randint(0, 128, (1, 61 if kv_bits < 16 else 5), generator=torch.Generator().manual_seed(1)).to(loaded.device)
    with subject.quantized():
        decoder = Decoder(loaded, 72, kv_bits)
        plain = list(decoder.generate(prompt, 6))
        decoder.prefill(prompt)
        decoder.capture()
        assert decoder.graph.steps and decoder.loop == "own loop"
        assert list(decoder.generate(prompt, 6)) == plain


FURTHER = [
    ("llm_int8", {"outliers": "static", "threshold": 0.5}), ("llm_int8", {"threshold": 0.0}), ("dynamic_int8", {"rotate": True}), ("rtn", {"rotate": True}),
    ("awq", {"scales": "own"}), ("smoothquant", {"activation": "static"}), ("fp8", {"activation": "token"}), ("fp8", {"activation": "static"}),
    ("nf4", {"double_quant": True}), ("quip", {"rotate": False}), ("mixed", {"rules": "*q_proj: llm_int8\n*: rtn bits=4 group_size=32"}),
]  # fmt: skip
LOOKS = [("llm_int8", {}), FURTHER[-1]]  # those that look for outlier columns at each token


@pytest.mark.parametrize(("name", "params"), [*((name, {}) for name in methods()), *FURTHER])
def test_every_methods_loop_is_captured_or_says_why_not(name: str, params: dict, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that run joined where their formats allow it. A captured loop writes what it writes launch by launch."""
    subject = quantized(loaded, name, monkeypatch, ("q_proj", "k_proj", "v_proj"), **({"steps": 2} if name == "qat" else params))
    prompt = torch.randint(0, 128, (1, 2), generator=torch.Generator().manual_seed(1)).to(loaded.device)
    with subject.quantized():
        decoder = Decoder(loaded, 16)
        plain = list(decoder.generate(prompt, 3))
        decoder.prefill(prompt)
        decoder.capture()
        assert (decoder.graph is None) == ("without a CUDA graph: outlier columns" in decoder.told()) == ((name, params) in LOOKS)
        assert list(decoder.generate(prompt, 3)) == plain


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu: torch.device) -> None:  # noqa: F811
    x = torch.ones(3, device=gpu)
    with pytest.raises(Refused, match="two devices"):
        x + torch.ones(3)
    with pytest.raises(Refused, match="generator"):
        torch.empty(3, device=gpu).normal_(generator=torch.Generator())
    asks = [lambda: x.sum().item(), lambda: x.cpu(), lambda: bool(x.any()), lambda: torch.tensor([1.0], device=gpu), lambda: x[[0, 1]], x.tolist]
    mask, counts = x > 0, torch.ones(3, dtype=torch.long, device=gpu)
    asks += [x.nonzero, mask.nonzero, x.unique, x.unique_consecutive, lambda: x[mask], lambda: x.masked_select(mask), lambda: x.equal(x), counts.bincount]
    asks += [lambda: x.repeat_interleave(counts), lambda: x.index_put((mask,), torch.ones(3, device=gpu)), lambda: torch.where(mask)]
    for waits in asks:
        waits()
        with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(Refused, match="wait"):
            waits()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):  # no size depends on the data
        x[mask] = 2.0
        x.masked_fill(mask, 0.0)[counts], x.repeat_interleave(counts, output_size=3), x.topk(2), torch.where(mask, x, 0.0)


def test_a_fused_step_is_the_loops_own(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined norms, turns and gates give the logits of the operations they stand for, and the same cache."""
    prompt = torch.randint(0, 128, (2, 5), generator=torch.Generator().manual_seed(1)).to(loaded.device)
    loop = LlamaLoop(loaded.model, 16, batch=2)
    assert loop.fused
    found = []
    for fused in (True, False):
        loop.fused = fused
        loop.prefill(prompt)
        found.append([loop.step(prompt[:, i : i + 1]).float().cpu() for i in range(3)] + [loop.cache.float().cpu()])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()  # bfloat16, rounded less often
