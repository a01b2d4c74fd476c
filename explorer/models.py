"""Where models come from: the bundled demo, a hub repository, a local folder. Configuration is read as data before any class is built."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer import architectures
from explorer.records import InputError, ModelRef

DEMO = Path(__file__).parent.parent / "assets" / "demo-model"
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "opt", "gpt_neox", "olmo2", "smollm3")
FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True)
class LoadedModel:
    """A model in bfloat16, in evaluation mode on `device`, its tokenizer (None with random weights), which one it is. `length`: of a window."""

    ref: ModelRef
    model: Any
    tokenizer: Any
    device: torch.device
    length: int


@cache
def _content_hash(folder: Path, stamp: tuple) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamp:
        digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _folder_ref(name: str, folder: Path) -> ModelRef:
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in ("config.json", "tokenizer.json"))
    return ModelRef(name, _content_hash(folder, tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)))


def resolve(name: str) -> ModelRef:
    """Which model a name means, pinned by content or commit. Raises InputError with a sentence."""
    if name == "demo":
        return _folder_ref("demo", DEMO)
    if name.startswith(architectures.PREFIX):
        return architectures.resolve(name)
    folder = Path(name).expanduser()
    if len(name) < 300 and folder.is_dir():
        check_config(folder)
        return _folder_ref(str(folder), folder)
    if not _ID.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"{name[:60]!r} is neither a folder here nor a model id such as 'HuggingFaceTB/SmolLM2-135M'.")
    from huggingface_hub import HfApi

    try:
        return ModelRef(name, HfApi().model_info(name, timeout=10).sha)
    except Exception as error:  # the client raises a dozen unrelated types: not found, gated, no network, rate limit
        kind = type(error).__name__
        raise InputError(
            f"The model {name!r} could not be found on the hub ({kind}). Check the id and the network, or choose 'demo' or a local folder."
        ) from error


def check_config(folder: Path) -> dict:
    """Reads config.json as data. Raises InputError unless it is a supported type that asks for no code of its own."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > 1_000_000:
        raise InputError(f"The folder {folder.name!r} holds no readable config.json; a model folder has config.json, tokenizer.json and *.safetensors.")
    try:
        config = json.loads(path.read_text())
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"config.json of {folder.name!r} is not valid: it must be JSON with a model_type.") from error
    if kind not in SUPPORTED:
        raise InputError(f"Models of type {str(kind)[:40]!r} are not supported yet; supported are {', '.join(SUPPORTED)}.")
    if "auto_map" in config or any(key.startswith("_attn") or key == "quantization_config" for key in config):
        raise InputError(f"The model {folder.name!r} brings its own code or is already quantized; choose the original 16-bit model of a supported type.")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"The folder {folder.name!r} holds no *.safetensors file; other weight formats can run code and are not loaded.")
    return config


def context(ref: ModelRef) -> int:
    """Tokens a window of this model may have, at most 2,048. For a hub id its config.json is read. Raises InputError with a sentence."""
    if ref.random:
        return min(2048, architectures.known(ref.name)["config"]["max_position_embeddings"])
    folder = DEMO if ref.name == "demo" else Path(ref.name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(ref.name, "config.json", revision=ref.revision)).parent
        except Exception as error:  # as in resolve
            raise InputError(f"The configuration of {ref.name!r} could not be downloaded ({type(error).__name__}). Check the network and try again.") from error
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    return min(2048, limit) if isinstance(limit, int) and limit > 0 else 2048


def load(ref: ModelRef, device: torch.device) -> LoadedModel:
    """Loads exactly this model from its folder or the hub's cache; of an architecture the skeleton. Raises InputError with a sentence."""
    if ref.random:
        return LoadedModel(ref, architectures.skeleton(ref.name, device), None, device, context(ref))
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = DEMO if ref.name == "demo" else Path(ref.name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(ref.name, revision=ref.revision, allow_patterns=list(FILES)))
        except Exception as error:  # as in resolve
            raise InputError(f"The model {ref.name!r} could not be downloaded ({type(error).__name__}). Check the network and try again.") from error
    check_config(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The files of {ref.name!r} could not be read as a model ({type(error).__name__}); download them again.") from error
    tokenizer.model_max_length = int(1e9)  # texts are cut into windows by us; silences a warning about the whole text's length
    model.eval().to(device).requires_grad_(False)
    return LoadedModel(ref, model, tokenizer, device, min(2048, getattr(model.config, "max_position_embeddings", 2048)))


def weight_of(ref: ModelRef, layer: str) -> torch.Tensor:
    """The weight [N, K] of one layer, named as `linears` names it, in the dtype of the file; read alone, without loading the model. Raises
    InputError when the model is not on this disk or has no such layer.
    """
    from safetensors import safe_open

    folder = DEMO if ref.name == "demo" else Path(ref.name).expanduser()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(path, "pt") as file:
            for key in (f"model.{layer}.weight", f"{layer}.weight"):
                if key in file.keys():  # noqa: SIM118 - the file is no dict
                    return file.get_tensor(key)
    raise InputError(f"The model {ref.name!r} has no layer {str(layer)[:60]!r} on this disk; run it once and choose a layer from the list.")


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in order."""
    wanted = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks by name ("layers.0.self_attn.q_proj"), in the model's order."""
    inside = {id(m) for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)}
    return {name.removeprefix("model."): m for name, m in model.named_modules() if id(m) in inside}


def windows(loaded: LoadedModel, text: str, tokens: int, length: int, seed: int = 0) -> torch.Tensor:
    """Cuts a text into windows, [W, length] int64, at most `tokens` in all (concatenate and cut); the first ones, or with a seed others drawn
    without replacement. Raises InputError if too short. For random weights, which know no text: random ids.
    """
    if loaded.tokenizer is None:
        ids = torch.randint(0, loaded.model.config.vocab_size, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(seed))
        return ids.to(loaded.device)
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    count = min(tokens, ids.numel()) // length
    if count < 1:
        raise InputError(f"The text is too short: it has {ids.numel()} tokens and at least {length} are needed; paste a longer text.")
    cut = ids[: ids.numel() // length * length].view(-1, length)
    chosen = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))[:count] if seed else slice(count)
    return cut[chosen].to(loaded.device)
