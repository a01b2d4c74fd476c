"""Reading a model's files: configuration as data, weights by memory map where that is exact, so that a model larger than memory can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer.records import InputError
from explorer.sizes import Weight

# Decoders whose linear layers are all that their blocks multiply by; each one is quantized and measured in the tests.
SUPPORTED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "opt", "gpt2", "gpt_neox", "smollm3", "olmo", "olmo2", "stablelm",
    "granite", "starcoder2",
)  # fmt: skip


def check_config(folder: Path) -> dict[str, Any]:
    """Reads config.json as data. Raises InputError unless it is a supported type that asks for no code of its own."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > 1_000_000:
        raise InputError(f"The folder {folder.name!r} holds no readable config.json; a model folder has config.json, tokenizer.json and *.safetensors.")
    try:
        content = json.loads(path.read_text())
    except ValueError:  # UnicodeDecodeError is one
        content = None
    config = checked(content, folder.name)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"The folder {folder.name!r} holds no *.safetensors file; other weight formats can run code and are not loaded.")
    return config


def checked(config: Any, name: str) -> dict[str, Any]:
    """The configuration, known to be of a supported type and to ask for no code. Raises InputError with a sentence."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"config.json of {name!r} is not valid: it must be JSON with a model_type.")
    if config["model_type"] not in SUPPORTED:
        raise InputError(f"Models of type {config['model_type'][:40]!r} are not supported yet; supported are {', '.join(SUPPORTED)}.")
    keys = set(_keys(config))
    if "auto_map" in keys or "quantization_config" in keys or any(k.startswith("_attn") for k in keys - {"_attn_implementation_autoset"}):
        raise InputError(f"The model {name!r} brings its own code or is already quantized; choose the original 16-bit model of a supported type.")
    for field in ("vocab_size", "num_hidden_layers", "n_layer", "hidden_size", "n_embd"):
        if field in config and not (type(config[field]) is int and 0 < config[field] <= 2**20):
            raise InputError(f"config.json of {name!r} is not valid: {field} is {str(config[field])[:20]!r}.")
    return config


def _keys(value: Any) -> list[str]:
    """The names of every object in JSON data."""
    if isinstance(value, dict):
        return [*value, *(key for part in value.values() for key in _keys(part))]
    return [key for part in value for key in _keys(part)] if isinstance(value, list) else []


def context_of(config: dict[str, Any]) -> int:
    """Tokens a window of a model of this configuration may have, at most 2,048."""
    limit = config.get("max_position_embeddings", config.get("n_positions"))
    return min(2048, limit) if type(limit) is int and limit > 0 else 2048


def weigh(folder: Path) -> Weight:
    """What a folder's safetensors weigh, from their headers."""
    from safetensors import safe_open

    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            parts = ((key, opened.get_slice(key)) for key in opened.keys())  # noqa: SIM118 - the file is no dict
            found += [(key, part.get_dtype(), part.get_shape()) for key, part in parts]
    return Weight.of(found)


def read_model(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model in bfloat16 on the CPU. Weights that are stored in bfloat16 stay on disk and are mapped into memory, so they cost none until they
    are used, and the system may drop them again; others are read and converted. Raises what transformers and safetensors raise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    clean = {key: value for key, value in config.items() if not key.startswith("_")}
    made = AutoConfig.for_model(clean.pop("model_type"), **clean)
    made.dtype = torch.bfloat16
    model = _mapped(folder, made)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder, config=made, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False)
    _linear_from_conv1d(model)
    return model.eval().requires_grad_(False)


def _mapped(folder: Path, config: Any) -> nn.Module | None:
    """The model with its weights mapped from the files, or None when they are not exactly the model's own, in bfloat16."""
    from accelerate import init_empty_weights
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    files = sorted(folder.glob("model*.safetensors"))
    places = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            keys = list(opened.keys())
            if any(opened.get_slice(key).get_dtype() != "BF16" for key in keys):
                return None
            places[file] = keys
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    own = model.state_dict(keep_vars=True)
    tied = _tied(model)
    given = {key for keys in places.values() for key in keys}
    if not given <= own.keys() or not (own.keys() - given) <= tied or any(not isinstance(own[key], nn.Parameter) for key in given):
        return None
    for file, keys in places.items():
        with safe_open(file, "pt") as opened:
            for key in keys:
                tensor = opened.get_tensor(key)
                if tensor.shape != own[key].shape:
                    raise ValueError(f"{key} has shape {tuple(tensor.shape)}, not {tuple(own[key].shape)}")
                parent, _, leaf = key.rpartition(".")
                setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    return model if not any(p.is_meta for p in model.parameters()) else None


def _tied(model: nn.Module) -> set[str]:
    """Names that may be absent from a checkpoint because they are another tensor of the model."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return {f"{name}.weight" for name, module in model.named_modules() if module is head}


def _linear_from_conv1d(model: nn.Module) -> None:
    """Puts nn.Linear in place of GPT-2's Conv1D, whose weight is the transposed one of the same product."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(*module.weight.shape, device="meta", dtype=module.weight.dtype)
            linear.weight, linear.bias = nn.Parameter(module.weight.T.contiguous()), nn.Parameter(module.bias)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, linear)
