"""Which low-bit files of other programs can hold a configuration, from its method and parameters alone: for a page, which must not wait for torch.

Only what integers decide is known here: `saving` looks at the tensors themselves and may still refuse, for the model's type or a layer's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Methods whose codes are integers with a scale, and with integers as zero-points; bits of those that leave no choice.
GRIDS = {"rtn": None, "gptq": None, "awq": None, "qat": None, "absmax": 8, "zeropoint": 8, "ternary": 2}
PACKED = (4, 8)  # bits of an integer in compressed-tensors


def in_gguf(method: str, params: Mapping[str, Any], catalogue: Sequence[Mapping[str, Any]]) -> bool:
    """Whether GGUF can hold all layers. catalogue: the methods with their fields."""
    return all(name == "kquant" or (_integers(name, given) and _reach(name, given) <= 8) for name, given in _parts(method, params, catalogue))


def in_compressed_tensors(method: str, params: Mapping[str, Any], catalogue: Sequence[Mapping[str, Any]]) -> bool:
    """Whether compressed-tensors can hold all layers as integers of low bits."""
    return all(_integers(name, given) and _bits(name, given) in PACKED for name, given in _parts(method, params, catalogue))


def _integers(method: str, given: Mapping[str, str]) -> bool:
    return method in GRIDS and given.get("rotate") != "true" and given.get("scales") != "own"


def _reach(method: str, given: Mapping[str, str]) -> int:
    """Bits of a code less its zero-point, with its sign."""
    asymmetric = method == "zeropoint" or given.get("symmetric") == "false"
    return _bits(method, given) + asymmetric


def _bits(method: str, given: Mapping[str, str]) -> int:
    return GRIDS[method] or int(given["bits"])


def _parts(method: str, params: Mapping[str, Any], catalogue: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    """(method, parameters in force as text) of each kind of layer that does not stay in 16 bits: one, or one a rule."""
    if method != "mixed":
        return [(method, _filled(method, params, catalogue))]
    found = []
    for line in str(params.get("rules", "")).splitlines():
        name, *pairs = line.partition(":")[2].split() or [""]
        if name != "none":
            found.append((name, _filled(name, dict(pair.split("=", 1) for pair in pairs if "=" in pair), catalogue)))
    return found


def _filled(method: str, params: Mapping[str, Any], catalogue: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    usual = next((one["fields"] for one in catalogue if one["name"] == method), ())
    return {name: str(value).lower() for name, value in ({field["name"]: field["default"] for field in usual} | dict(params)).items()}
