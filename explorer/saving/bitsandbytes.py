"""bitsandbytes: NF4 and FP4 in blocks along the inputs, with double quantization where the method chose it, as transformers reads them.

The layout is that of the package of that name, which is the oracle in the tests and no dependency: two codes a byte, the first in the upper
half, and a state that says how to read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from explorer.methods.fp4 import FP4
from explorer.methods.nf4 import NF4
from explorer.qtensor import RUN, QuantizedTensor
from explorer.saving import Format

# FP4 by bit pattern: sign, two bits of exponent, one of mantissa; the entries of the method's ascending table that have these values.
PATTERNS = {"fp4": (8, 9, 14, 15, 12, 13, 10, 11, 8, 7, 2, 1, 4, 3, 6, 5), "nf4": tuple(range(16))}
TABLES = {"nf4": NF4, "fp4": (FP4[0], *FP4)}


def _kind(q: QuantizedTensor) -> str | None:
    """ "nf4" or "fp4"; None for another table."""
    book = None if q.codebook is None else q.codebook.cpu()
    return next((name for name, table in TABLES.items() if book is not None and torch.equal(book, torch.tensor(table))), None)


def _refuses(q: QuantizedTensor) -> str:
    return "" if _kind(q) else "only the tables of NF4 and FP4 are known there"


def _tensors(q: QuantizedTensor) -> dict[str, Tensor]:
    kind, (n, k) = _kind(q), q.codes.shape
    order = PATTERNS[kind]
    place = torch.tensor([order.index(code) if code in order else 0 for code in range(16)], dtype=torch.uint8, device=q.codes.device)
    codes = place[q.codes.long()].flatten()
    state: dict[str, Any] = {"quant_type": kind, "blocksize": k // q.scale.shape[1], "dtype": "bfloat16", "shape": [n, k]}
    made = {
        "weight": (codes[::2] << 4 | codes[1::2]).unsqueeze(1),
        "weight.quant_map": q.codebook.cpu()[list(order)],
        "weight.absmax": q.scale.float().flatten(),
    }
    if q.nested is not None:
        made |= {"weight.absmax": q.nested.codes.flatten(), "weight.nested_absmax": q.nested.outer, "weight.nested_quant_map": q.nested.codebook}
        state |= {"nested_blocksize": RUN, "nested_dtype": "float32", "nested_offset": q.nested.offset.item()}
    made[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return made


def _config(layers: Mapping[str, QuantizedTensor], rest: Sequence[str]) -> dict[str, Any]:
    first = next(iter(layers.values()))
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": _kind(first), "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": first.nested is not None, "llm_int8_skip_modules": list(rest) or None,
    }  # fmt: skip


LOADS = (
    "transformers with the package bitsandbytes, and vLLM with the package vllm-bnb-plugin beside it (vLLM 0.32 on a CPU ran the bundled model in this format "
    "as measured)"
)
FORMAT = Format("bitsandbytes", "bitsandbytes", _refuses, _tensors, _config, LOADS)
