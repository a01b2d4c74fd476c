"""Damaged checkpoints: what a folder lacks, holds twice or holds as NaN is named in a sentence, before a number is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from explorer import models
from explorer.__main__ import main
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.metrics.speed import read_per_token
from explorer.records import InputError
from explorer.store import Store
from tests import architectures

CPU = torch.device("cpu")
Q = "model.layers.0.self_attn.q_proj"
Weights = dict[str, torch.Tensor]


def damaged(folder: Path, change: Callable[[Weights], object], kind: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A small model of a type with its weights changed."""
    architectures.make(kind, folder, dtype)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("llama", lambda w: w.pop(f"{Q}.weight"), f"lack the tensor {Q}.weight;"),
        ("gpt2", lambda w: (w.pop("transformer.h.1.mlp.c_fc.weight"), w.pop("transformer.h.0.ln_1.bias")), r"lack the tensor \S+ln_1.bias and 1 more;"),
        ("mistral", lambda w: w.pop("lm_head.weight"), "lack the tensor lm_head.weight;"),
        ("llama", lambda w: w.update({f"{Q}.weight": torch.zeros(3, 3, dtype=w[f"{Q}.weight"].dtype)}), f"{Q}.weight in another shape"),
        ("llama", lambda w: w.update({f"{Q}.bias": torch.zeros(64, dtype=w[f"{Q}.weight"].dtype)}), f"hold the tensor {Q}.bias, for which"),
        ("llama", lambda w: w.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}), "layers.2.mlp.up_proj.weight, for which"),
    ],
)
def test_files_that_are_not_the_models_are_a_sentence(kind: str, change: Callable, sentence: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Nothing random takes the place of a tensor, and none that belongs to a block is left out."""
    folder = damaged(tmp_path / kind, change, kind, dtype)
    with pytest.raises(InputError, match=sentence):
        models.load(models.resolve(str(folder), Hub()), CPU, Hub())


def add_buffers(weights: Weights) -> None:
    """What older versions of transformers saved beside the weights, and a head of another task."""
    weights |= {
        "transformer.h.0.attn.bias": torch.zeros(1, 1, 4, 4),
        "transformer.h.0.attn.masked_bias": torch.zeros(1),
        "v_head.summary.weight": torch.zeros(2),
    }


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", add_buffers),
        ("gpt2", lambda w: [w.update({name.removeprefix("transformer."): w.pop(name)}) for name in list(w)]),
        ("llama", lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})),
        ("opt", lambda w: w.update({"lm_head.weight": w["model.decoder.embed_tokens.weight"].clone()})),
    ],
)
def test_files_that_say_the_same_in_another_way_are_read(kind: str, change: Callable, tmp_path: Path) -> None:
    whole = models.load(models.resolve(str(architectures.make(kind, tmp_path / "whole")), Hub()), CPU, Hub()).model
    folder = damaged(tmp_path / kind, change, kind)
    model = models.load(models.resolve(str(folder), Hub()), CPU, Hub()).model
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def add_head(weights: Weights) -> None:
    """A head of its own beside the embedding that the configuration ties it to."""
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_head_that_the_files_hold_is_the_models_where_the_configuration_ties_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """As transformers reads it; and it is said, counted and saved."""
    folder, whole = damaged(tmp_path / "apart", add_head, "llama", dtype), architectures.make("llama", tmp_path / "whole", dtype)
    tokens = torch.randint(0, 4096, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    loaded = models.load(models.resolve(str(folder), Hub()), CPU, Hub())
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(tokens).logits, theirs(tokens).logits, rtol=0.02, atol=0.02)
    head, table = loaded.model.get_output_embeddings().weight, loaded.model.get_input_embeddings().weight
    assert loaded.untied and not loaded.model.config.tie_word_embeddings and not torch.equal(head, table)
    usual = models.load(models.resolve(str(whole), Hub()), CPU, Hub())
    assert not usual.untied and usual.model.config.tie_word_embeddings and usual.model.get_output_embeddings().weight is usual.model.model.embed_tokens.weight
    assert read_per_token(loaded.model) == read_per_token(usual.model)
    for form in ("compressed-tensors", "gguf"):
        asked = ["save", "--model", str(folder), "--method", "rtn", "--group-size", "32", "--as", form, "--no-measure"]
        assert main([*asked, "--to", str(tmp_path / form), "--store", str(tmp_path / "r.db")]) == 0
    saved = load_file(tmp_path / "compressed-tensors" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], head) and torch.equal(saved["model.embed_tokens.weight"], table)
    assert json.loads((tmp_path / "compressed-tensors" / "config.json").read_text())["tie_word_embeddings"] is False
    names = {tensor.name for tensor in GGUFReader(tmp_path / "gguf" / "model.gguf").tensors}
    assert {"output.weight", "token_embd.weight"} <= names


def test_a_head_beside_tied_embeddings_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, asked = damaged(tmp_path / "apart", add_head), ["--tokens", "512", "--length", "128", "--store", str(tmp_path / "r.db")]
    assert main(["run", "--model", str(folder), "--method", "none", *asked]) == 0
    assert "config.json ties the head to the embedding, but the files hold two" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.float32, "float32"), (torch.bfloat16, "")])
def test_weights_that_are_rounded_as_they_are_read_are_said(dtype: torch.dtype, name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, asked = damaged(tmp_path / "model", lambda w: None, dtype=dtype), ["--tokens", "512", "--length", "128", "--store", str(tmp_path / "r.db")]
    assert main(["run", "--model", str(folder), "--method", "none", *asked]) == 0
    said = capsys.readouterr().out
    told = f"the files hold {name}: weights are rounded to bfloat16 as they are read, and the 16-bit baseline is that copy"
    assert told in said if name else "rounded to" not in said


def test_a_missing_weight_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = damaged(tmp_path / "model", lambda w: w.pop(f"{Q}.weight"))
    assert main(["run", "--model", str(folder), "--method", "none", "--store", str(tmp_path / "r.db")]) == 2
    out, err = capsys.readouterr()
    assert f"{Q}.weight" in err and not out


@pytest.mark.parametrize(("tensor", "layer"), [(f"{Q}.weight", "layers.0.self_attn.q_proj"), ("model.embed_tokens.weight", "embed_tokens")])
def test_one_nan_is_a_sentence_for_every_method(tensor: str, layer: str, tmp_path: Path, store: Store) -> None:
    folder = damaged(tmp_path / "model", lambda w: w[tensor][5].fill_(torch.nan))
    runner, sentence = LocalRunner(store, Loader(CPU)), f"The weights of layer {layer} hold NaN"
    for method in ("none", "rtn"):
        with pytest.raises(InputError, match=sentence):
            last_report(runner.run(str(folder), method, {}, tokens=512, length=128))
    with pytest.raises(InputError, match=sentence):
        list(runner.do("sweep", {"model": str(folder), "methods": ["rtn"], "bits": [4], "groups": [32], "options": {"tokens": 512, "length": 128}}))
    with pytest.raises(InputError, match=sentence):
        list(runner.do("inputs", {"model": str(folder), "layer": "layers.0.self_attn.q_proj"}))


def test_a_model_that_overflows_still_gives_its_report(tmp_path: Path, store: Store) -> None:
    """Finite weights so large that its logits are not: every token is counted as bad."""
    folder = damaged(tmp_path / "model", lambda w: w["model.norm.weight"].fill_(3e38))
    report = last_report(LocalRunner(store, Loader(CPU)).run(str(folder), "none", {}, tokens=512, length=128))
    assert report.find("perplexity").bad == 4 * 127


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = architectures.make("llama", tmp_path / "model")
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(InputError, match=r"'model' holds no tokenizer\.json"):
        models.load(models.resolve(str(folder), Hub()), CPU, Hub())
