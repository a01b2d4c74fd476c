"""GGUF: one file that llama.cpp and what is built on it read. Integers in groups of 32 and more as Q4_0, Q5_0 or Q8_0, K-quants as what they are.

The container and the names of its tensors are the package gguf's. What a tensor means is tested by that package's decoder and by transformers,
which reads such files into its own models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from torch import Tensor

from explorer.methods.kquant import MIXTURES, KQuant
from explorer.models import LoadedModel
from explorer.qtensor import QuantizedTensor
from explorer.saving import Format, Prepared
from explorer.saving.ggml_blocks import layout, packed, refuses

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type: the architecture's name there
ROPES = {"llama": ("default", "llama3", "linear"), "qwen2": ("default",), "qwen3": ("default",)}
SILU = ("silu", "swish")  # names of the one gate that files of these families mean; none of their fields says another
# One layout in all layers, by llama.cpp's name for it. Not Q2_K and Q4_K: its Q2_K, Q2_K_S, Q4_K_S and Q4_K_M give some layers a wider one.
PURE = {"Q3_K": "Q3_K_S", "Q5_K": "Q5_K_S"} | {name: name for name in ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q6_K")}
# How a tokenizer splits text before it merges bytes, by the name llama.cpp has for it; the regular expressions are those of the models' authors.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {SPLIT % r"\p{N}{1,3}": "llama-bpe", SPLIT % r"\p{N}": "qwen2"}


def _refuses_model(loaded: LoadedModel) -> str:
    config = loaded.model.config
    rope, window = _rope(config), getattr(config, "sliding_window", None)
    if rope not in ROPES[FAMILIES[config.model_type]]:
        return f"its rotary embedding of type {rope!r} is not written as GGUF here"
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    if window and window < config.max_position_embeddings and "sliding_attention" in kinds:
        return f"its attention looks back {window:,} tokens, and programs that read GGUF run this family without such a window"
    if config.hidden_act not in SILU:
        return f"its gate is {config.hidden_act!r}, and programs that read GGUF run this family with SiLU"
    if biases := [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]:
        return f"its biases ({' and '.join(biases)}) are dropped by transformers' reader of GGUF"
    return "" if loaded.tokenizer is not None and _split_of(loaded.tokenizer) else "its tokenizer is no byte-level BPE that llama.cpp knows by name"


def _rope(config: Any) -> str:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")


def _readers(made: Prepared) -> str:
    config = made.subject.loaded.model.config
    if _rope(config) != "default":
        return f"{LLAMA_CPP}; not with transformers, which drops the scaling of its rotary embedding"
    if config.model_type == "qwen3" and config.head_dim != 128:
        return f"{LLAMA_CPP}; not with transformers, which takes heads of 128 for granted in this family"
    return ""


def _split_of(tokenizer: Any) -> str:
    """llama.cpp's name for the tokenizer's way of splitting text, "" when it has none."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    before = described["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if described["model"]["type"] != "BPE" or not kinds or kinds[-1] != "ByteLevel":
        return ""
    if kinds == ["ByteLevel"]:
        return "gpt-2" if steps[0]["use_regex"] else ""
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm" if steps[0]["individual_digits"] and steps[1]["use_regex"] else ""
    return SPLITS.get(steps[0].get("pattern", {}).get("Regex", ""), "") if kinds == ["Split", "ByteLevel"] else ""


def _write(loaded: LoadedModel, state: Mapping[str, Tensor], layers: Mapping[str, QuantizedTensor], folder: Path) -> None:
    """state: the parameters that stay in 16 bits, layers: the quantized ones, both by their path in the model."""
    config = loaded.model.config
    family = FAMILIES[config.model_type]
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    folder.mkdir(parents=True, exist_ok=True)
    file = gguf.GGUFWriter(folder / "model.gguf", family)
    _describe(file, config, loaded.ref.name)
    _vocabulary(file, loaded.tokenizer, config.vocab_size)
    tied = config.tie_word_embeddings
    for path, tensor in state.items():
        if not (tied and path == "lm_head.weight"):
            flat = tensor.dim() == 1  # llama.cpp wants vectors in 32 bits
            values = _interleaved(path, tensor, config).float() if flat else _interleaved(path, tensor, config).bfloat16().view(torch.int16)
            kind = gguf.GGMLQuantizationType.F32 if flat else gguf.GGMLQuantizationType.BF16
            file.add_tensor(names.get_name(path, (".weight", ".bias")), values.cpu().numpy(), raw_dtype=kind)
    kinds: dict[str, str] = {}
    for path, q in layers.items():
        kind, rows = packed(q)
        kinds[path] = kind
        order = _interleaved(f"{path}.weight", torch.arange(len(rows)), config).numpy()
        file.add_tensor(names.get_name(f"{path}.weight", (".weight",)), numpy.ascontiguousarray(rows[order]), raw_dtype=gguf.GGMLQuantizationType[kind])
    if (named := _file_type(kinds, config)) is not None:
        file.add_file_type(named)
    slower = _slowed(loaded.model)
    if not torch.equal(slower, torch.ones_like(slower)):
        file.add_tensor("rope_freqs.weight", slower.cpu().numpy())
    with closing(file):
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()


def _file_type(kinds: Mapping[str, str], config: Any) -> gguf.LlamaFileType | None:
    """llama.cpp's name for what the layers are stored in, from each one's layout: that of one layout for all, or of a mixture whose recipe they follow.
    None for what it has no name for: the field is optional, and a reader then tells by the tensors. GUESSED alone would read "all F32 (guessed)" there.
    """
    found = set(kinds.values())
    if len(found) == 1:
        return gguf.LlamaFileType[f"MOSTLY_{name}"] if (name := PURE.get(found.pop())) else None
    for mixture in MIXTURES:
        recipe = KQuant(mixture).for_model(config.to_dict())
        if all(kind == recipe.of(path).format.upper() for path, kind in kinds.items()):
            return gguf.LlamaFileType[f"MOSTLY_{mixture.upper()}"]
    return None


def _stored(q: QuantizedTensor) -> tuple[str, int]:
    """(the layout's name, the bits that a tensor takes in it, scales included)."""
    kind = layout(q)
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return kind, 8 * size * q.codes.numel() // weights


def _interleaved(path: str, tensor: Tensor, config: Any) -> Tensor:
    """The rows of a query's or key's weight in the order in which llama.cpp rotates them for this family: neighbours, not halves."""
    part = path.split(".")[-2]
    if FAMILIES[config.model_type] != "llama" or part not in ("q_proj", "k_proj"):
        return tensor
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _slowed(model: Any) -> Tensor:
    """[head size / 2] float32: by how much each rotary frequency is lower than the plain one."""
    actual = model.get_decoder().rotary_emb.inv_freq.float()
    steps = torch.arange(len(actual), device=actual.device) / len(actual)
    return (_base(model.config) ** -steps / actual).round(decimals=5)


def _base(config: Any) -> float:
    return float((getattr(config, "rope_parameters", None) or {}).get("rope_theta") or config.rope_theta)


def _describe(file: gguf.GGUFWriter, config: Any, name: str) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    file.add_name(name)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_key_length(head)
    file.add_value_length(head)
    file.add_rope_dimension_count(head)
    file.add_rope_freq_base(_base(config))
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _vocabulary(file: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Tokens by id, their kinds and merges. Ids of the model that the tokenizer has no token for get one that is never used."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(size):
        special = added.get(index)
        tokens.append(words.get(index, f"[PAD{index}]"))
        kinds.append(
            gguf.TokenType.UNUSED if index not in words else gguf.TokenType.NORMAL if special is None
            else gguf.TokenType.CONTROL if special.special else gguf.TokenType.USER_DEFINED
        )  # fmt: skip
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(_split_of(tokenizer))
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    file.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for add, index in ((file.add_bos_token_id, tokenizer.bos_token_id), (file.add_eos_token_id, tokenizer.eos_token_id)):
        if index is not None:
            add(index)
    file.add_add_bos_token(tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        file.add_chat_template(tokenizer.chat_template)


LLAMA_CPP = "llama.cpp and what is built on it (llama-cpp-python, Ollama, LM Studio)"
FORMAT = Format(
    "gguf", "GGUF", refuses, None, None, f"{LLAMA_CPP}; transformers by gguf_file='model.gguf'",
    refuses_model=_refuses_model, write=_write, stored=_stored, families=tuple(FAMILIES), readers=_readers,
)  # fmt: skip
