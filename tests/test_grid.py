"""Grids of configurations: each once, what a method lacks told, what none takes or uses refused."""

from __future__ import annotations

import pytest

from explorer.grid import CHANNEL, LIMIT, check_taken, grid, left_out
from explorer.methods import build, catalogue
from explorer.records import InputError


def test_grid_holds_each_configuration_once() -> None:
    found = grid(catalogue(), ["gptq", "rtn", "nf4", "fp8"], [3, 4], [64, 128, CHANNEL])
    names = [one.method for one in found]
    assert names[0] == "none" and names.count("rtn") == names.count("gptq") == 6 and names.count("nf4") == 2 and names.count("fp8") == 1
    assert names.index("rtn") < names.index("gptq"), "what reads calibration text comes last"
    assert len(set(found)) == len(found)
    for one in found:
        build(one.method, dict(one.params))
    assert {dict(one.params).get("granularity") for one in found if one.method == "rtn"} == {"group", "channel"}
    assert [one.method for one in grid(catalogue(), ["hqq", "rtn"], [7], [64])] == ["none", "rtn"], "HQQ has no 7 bits"


@pytest.mark.parametrize(
    ("methods", "bits", "groups", "sentence"),
    [(["magic"], [4], [64], "no method"), ([], [4], [64], "No configuration"), (["rtn"], [], [64], "No configuration"),
     (["none"], [4], [64], "No configuration"),
     (["rtn", "gptq"], list(range(2, 9)) * 40, [32, 64, 128], "")],
)  # fmt: skip
def test_grids_that_cannot_be(methods: list[str], bits: list[int], groups: list[int], sentence: str) -> None:
    if not sentence:
        assert len(grid(catalogue(), methods, bits, groups)) == 1 + 2 * 7 * 3 <= LIMIT, "a width given twice counts once"
        return
    with pytest.raises(InputError, match=sentence):
        grid(catalogue(), methods, bits, groups)


def test_what_a_method_lacks_is_told() -> None:
    asked = catalogue(), ["nf4", "hqq", "qat"]
    assert left_out(*asked, [3, 7], [16, 64]) == "left out: hqq and qat have no 7 bits; hqq, nf4 and qat have no groups of 16"
    assert left_out(catalogue(), ["rtn", "hqq", "fp8"], [4], [64, CHANNEL]) == "left out: hqq has no single scale an output channel"
    assert left_out(catalogue(), ["rtn", "fp8"], [4, 7], [64, CHANNEL]) == ""
    with pytest.raises(InputError, match="nf4, hqq, qat: no 7 bits and no groups of 16 here"):
        check_taken(*asked, [3, 7], [16, 64])
    with pytest.raises(InputError, match="nf4: no 3 bits here"):
        check_taken(catalogue(), ["nf4"], [3], [64])
    check_taken(catalogue(), ["rtn", *asked[1]], [3, 7], [32, CHANNEL])


@pytest.mark.parametrize(
    ("methods", "bits", "further", "sentence"),
    [(["gptq"], 4, {"static_groups": ["true"]}, "uses static_groups, which is used only with act_order false; leave it out"),
     (["rtn"], 4, {"symmetric": ["false"], "full_range": ["true"]}, "uses full_range, which is used only with symmetric true; leave it out"),
     (["rtn", "qat"], 7, {"steps": ["5"]}, "uses steps; leave it out")],
)  # fmt: skip
def test_a_parameter_that_nothing_uses_is_refused(methods: list[str], bits: int, further: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        grid(catalogue(), methods, [bits], [64], further)
    off = {name: ["false"] if values == ["true"] else values for name, values in further.items() if name != "steps"}
    assert len(grid(catalogue(), methods, [bits], [64], off)) == 2
