"""Which low-bit files can hold a configuration, known from its method and parameters alone, against what the formats say of its tensors."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from typing import Any

import pytest

from explorer import models, saving
from explorer.export import commands
from explorer.hub import Hub
from explorer.low_bit_files import in_compressed_tensors, in_gguf
from explorer.methods import build, catalogue
from explorer.recorded import SEEDS
from explorer.records import InputError, QuantSpec, report_from
from explorer.request import Request
from explorer.saving.beforehand import check_asked, tried

RULES = "*layers.1.*v_proj: rtn bits=8 symmetric=false; *layers.99.*: nf4; *o_proj: none; *: rtn bits=4 symmetric=false"
INTEGERS = [
    *(("rtn", {"bits": b, "symmetric": s}) for b in (2, 4, 7, 8) for s in (True, False)), ("rtn", {"rotate": True}),
    ("gptq", {"bits": 8, "symmetric": False}), ("gptq", {"bits": 3}), ("absmax", {}), ("zeropoint", {}), ("hqq", {}), ("quip", {}), ("ternary", {}),
    ("binary", {}), ("awq", {"bits": 8}), ("awq", {"scales": "own"}), ("kquant", {"format": "q5_0"}), ("kquant", {"format": "q3_k"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params"), INTEGERS, ids=[f"{m}-{i}" for i, (m, _) in enumerate(INTEGERS)])
def test_a_page_knows_without_tensors_which_files_can_hold_a_configuration(method: str, params: dict[str, Any]) -> None:
    """Against what a trial of the method gives, alone and as a rule beside one that all files hold."""
    fits = saving.formats()["gguf"].refuses(trial := tried(build(method, params))) == ""
    assert in_gguf(method, params, catalogue()) == fits
    rule = " ".join([f"*v_proj: {method}", *(f"{name}={str(value).lower()}" for name, value in params.items())])
    assert in_gguf("mixed", {"rules": f"{rule}\n*o_proj: none\n*: rtn bits=4"}, catalogue()) == fits
    if method not in ("kquant", "binary", "quip"):
        assert in_compressed_tensors(method, params, catalogue()) == (saving.formats()["compressed-tensors"].refuses(trial) == "")


def test_a_page_offers_gguf_only_of_what_it_holds() -> None:
    """Of tables, floats and rounded inputs, which the tests of GGUF hold that it refuses, and of a rule with zero-points at 8 bits it does not."""
    for method in ("nf4", "fp4", "fp8", "nvfp4", "mxfp", "dynamic_int8", "smoothquant", "llm_int8"):
        assert not in_gguf(method, {}, catalogue())
    plain = next(report for report in map(report_from, json.loads(SEEDS.read_text())) if report.experiment.spec.method == "rtn")
    spec = QuantSpec.of("mixed", rules="*v_proj: rtn bits=8 symmetric=false\n*: rtn bits=4")
    mixed = dataclasses.replace(plain, experiment=dataclasses.replace(plain.experiment, spec=spec))
    assert "as GGUF" in commands([plain], live=True) and "as GGUF" not in commands([mixed], live=True) and "download it" in commands([mixed], live=True)


@pytest.mark.parametrize(
    ("method", "params", "form", "said"),
    [("mixed", {"rules": RULES}, "gguf", r"GGUF cannot hold Mixed .*: its codes reach beyond 8 bits from zero \(RTN 8-bit g64 asymmetric\)\. What can: comp"),
     ("mixed", {"rules": "*v_proj: gptq bits=3; *: rtn bits=4"}, "compressed-tensors", r"have 4 or 8 bits, not 3 \(GPTQ 3-bit g64\)\. What can: gguf"),
     ("kquant", {"format": "q4_k_m"}, "compressed-tensors", "compressed-tensors cannot hold GGUF q4_k_m"),
     ("mixed", {"rules": RULES}, "compressed-tensors", ""), ("kquant", {"format": "q4_k_m"}, "gguf", "")],
)  # fmt: skip
def test_rules_that_a_format_cannot_hold_are_refused_before_a_weight_is_read(method: str, params: dict[str, Any], form: str, said: str) -> None:
    """Each rule that decides a layer of the model is tried; one that no layer meets decides nothing."""
    experiment, made, _ = Request("demo", method, params).prepare(Hub())
    with pytest.raises(InputError, match=said) if said else nullcontext():
        check_asked(experiment, made, models.configuration(experiment.model, Hub()), form)
