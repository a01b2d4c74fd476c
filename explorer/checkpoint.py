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


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json as data, of whatever model. Raises InputError where there is none that is a JSON object of a sensible size."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > 1_000_000:
        raise InputError(f"The folder {folder.name!r} holds no readable config.json; a model folder has config.json, tokenizer.json and *.safetensors.")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):  # UnicodeDecodeError is one of the first
        content = None
    return typed(content, folder.name)


def typed(config: Any, name: str) -> dict[str, Any]:
    """A configuration, known to be an object with a model_type. Raises InputError."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"config.json of {name!r} is not valid: it must be JSON with a model_type.")
    return config


def check_config(folder: Path) -> dict[str, Any]:
    """Reads config.json as data. Raises InputError unless it is a supported type that asks for no code of its own."""
    config = checked(read_config(folder), folder.name)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"The folder {folder.name!r} holds no *.safetensors file; other weight formats can run code and are not loaded.")
    return config


def check_tokenizer(folder: Path) -> None:
    """Raises InputError unless a folder holds a tokenizer: one whole file, or the vocabulary and the merges of older models."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"The folder {folder.name!r} holds no tokenizer.json; put the model's tokenizer beside its weights.")


def checked(config: Any, name: str) -> dict[str, Any]:
    """The configuration, known to be of a supported type and to ask for no code. Raises InputError with a sentence."""
    if typed(config, name)["model_type"] not in SUPPORTED:
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
    are used, and the system may drop them again; others are read and converted. A head that the files hold is the model's, also where the configuration
    ties it to the embedding: as transformers does, the two are one only where they are equal, and the model's configuration says which it is. Raises
    InputError where the files hold other tensors than the model's, and what transformers and safetensors raise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    clean = {key: value for key, value in config.items() if not key.startswith("_")}
    made = AutoConfig.for_model(clean.pop("model_type"), **clean)
    made.dtype = torch.bfloat16
    model = _mapped(folder, made)
    if model is None:
        options = {"dtype": torch.bfloat16, "use_safetensors": True, "trust_remote_code": False}
        model, told = AutoModelForCausalLM.from_pretrained(folder, config=made, ignore_mismatched_sizes=True, output_loading_info=True, **options)
        complete(model, told)
    if getattr(model.get_output_embeddings(), "weight", None) is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
    _linear_from_conv1d(model)
    return model.eval().requires_grad_(False)


def complete(model: nn.Module, told: dict[str, Any]) -> None:
    """Raises InputError naming a tensor that transformers, as its loading info tells, put random numbers in for want of it, or left out although it is
    one of the blocks' or of a module's that the model has: such a model is not the one that was trained. Buffers that older versions saved are fine.
    """
    if missing := sorted(told["missing_keys"]):
        raise InputError(f"The model's files lack {_first(missing)}; one is missing or damaged, or config.json is of another model. Download it again.")
    if mismatched := sorted(key for key, *_ in told["mismatched_keys"]):
        raise InputError(f"The model's files hold {_first(mismatched)} in another shape than config.json says; download all files of one model.")
    if strange := sorted(key for key in told["unexpected_keys"] if _of_the_model(model, key)):
        raise InputError(f"The model's files hold {_first(strange)}, for which its config.json has no place; download all files of one model.")


def _first(keys: list[str]) -> str:
    """The first of some tensors by name, and how many more there are."""
    return f"the tensor {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _of_the_model(model: nn.Module, key: str) -> bool:
    """Whether a tensor that the model has no place for would change what it computes: one of a block, or of a module that is there."""
    parent, _, leaf = key.rpartition(".")
    if leaf in ("inv_freq", "masked_bias") or key.endswith(("attn.bias", "attention.bias")):
        return False
    modules = dict(model.named_modules())
    wanted = model.config.num_hidden_layers
    lists = {name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) == wanted}
    full = {f"{prefix}{parent}" for prefix in ("", f"{model.base_model_prefix}.")}
    return bool(parent) and any(name in modules or any(name.startswith(f"{blocks}.") for blocks in lists) for name in full)


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
                    told = {"missing_keys": (), "mismatched_keys": [(key,)], "unexpected_keys": ()}
                    complete(model, told)
                parent, _, leaf = key.rpartition(".")
                setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights(missing_keys=own.keys() - given)
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
