"""Models that are published quantized: their bytes by hand, what a quantization_config says, and the answers on the page and the command line."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio, which the page is made of")

import gradio as gr

from explorer.__main__ import main
from explorer.accelerators import ACCELERATORS, fit
from explorer.experiment import LocalRunner
from explorer.families import Architecture, architecture
from explorer.planner import Plan, need, step_weights
from explorer.presets import configurations, presets
from explorer.records import InputError
from explorer.store import Store
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell
from explorer.ui.tabs.planner.handlers import Plans, first, follows
from tests.test_plan_formats import solved

AS_IT_IS = Plan(format="published")


def published_bytes(name: str) -> int:
    return need(presets()[name], AS_IT_IS).weight_bytes


def test_gpt_oss_by_hand() -> None:
    """Experts in MXFP4, 4 bits and 8 for 32 of them, which is 4.25; all other parameters in 16 bits: the bytes that each repository's index adds up to."""
    for name, layers, experts, parameters, published in (
        ("gpt-oss-120b", 36, 128, 116_829_156_672, 65_248_815_744),
        ("gpt-oss-20b", 24, 32, 20_914_757_184, 13_761_264_768),
    ):
        coded = layers * experts * 3 * 2880 * 2880
        assert published_bytes(name) == coded * 17 // 32 + 2 * (parameters - coded) == published
    assert need(presets()["gpt-oss-20b"], AS_IT_IS).bits_per_weight < 4.7, "experts are nearly all of its layers"


def test_deepseek_v3_by_hand() -> None:
    """Its repository counts 680,571,043,840 weights in FP8, 3,918,786,560 in BF16 and 41,555,600 in float32, with the layer that predicts a second token:
    one more layer of experts with its scales, a copy of embedding and head, a projection of two hidden states to one, and three norms.
    """
    hidden, experts, width = 7168, 256, 2048
    attention = [(1536, hidden), (128 * 192, 1536), (576, hidden), (128 * 256, 512), (hidden, 128 * 128)]
    matrices = attention + (experts + 1) * [(width, hidden), (width, hidden), (hidden, width)]
    coded = sum(n * k for n, k in matrices)
    scales = sum(-(-n // 128) * -(-k // 128) for n, k in matrices)
    norms, tables, router = 2 * hidden + 1536 + 512 + 3 * hidden, 2 * 129_280 * hidden + hidden * 2 * hidden, experts * hidden
    second = coded + 4 * (scales + experts) + 2 * (norms + tables + router)
    assert published_bytes("deepseek-v3") + second == 680_571_043_840 + 2 * 3_918_786_560 + 4 * 41_555_600 == 688_574_839_360
    assert published_bytes("deepseek-v3") / 1e9 == pytest.approx(673.2, abs=0.1)


LLAMA = configurations()["llama-3.1-8b"]["config"]
INSIDE, ROWS, INPUTS = 6_979_321_856, 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096), 32 * (6 * 4096 + 14336)  # weights, outputs and inputs in the blocks
REST = 2 * (8_030_261_248 - INSIDE)


def packed(**weights: Any) -> dict[str, Any]:
    """A configuration of compressed-tensors."""
    kept = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True} | weights
    form = {"int": "pack-quantized", "float": "float-quantized"}[kept["type"]]
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": kept}}}


CONFIGS = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, INSIDE * (4 + 20 / 128) / 8),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, INSIDE * (4 + 20 / 128) / 8 + 4 * INPUTS),
    "gptq, rows": ({"quant_method": "gptq", "bits": 8, "group_size": -1}, INSIDE + ROWS * 3 + 4 * INPUTS),
    "fp8, a matrix": ({"quant_method": "fp8", "activation_scheme": "static"}, INSIDE + 224 * 8),
    "fp8, blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}, INSIDE + INSIDE / 128**2 * 4),
    "compressed": (packed(), INSIDE * (4 + 16 / 128) / 8 + 224 * 16),
    "compressed fp8": (packed(num_bits=8, type="float", strategy="channel"), INSIDE + 2 * ROWS),
    "compressed, part": (packed() | {"ignore": ["lm_head", "re:.*self_attn.*"]}, 32 * (3 * 4096 * 14336 * (4 + 16 / 128) / 8 + 3 * 16 + 41_943_040 * 2)),
}


def model_of(quantization: object) -> Architecture:
    return architecture(LLAMA | {"quantization_config": quantization}, "a-model")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_counted_as_its_files_are(name: str) -> None:
    said, inside = CONFIGS[name]
    assert need(model_of(said), AS_IT_IS).weight_bytes == pytest.approx(inside + REST, abs=8)


def test_a_head_that_no_name_leaves_out_is_quantized() -> None:
    head, said = 128_256 * 4096, packed()
    with_head = need(model_of(said | {"ignore": []}), AS_IT_IS)
    assert with_head.weight_bytes == pytest.approx(need(model_of(said), AS_IT_IS).weight_bytes - 2 * head + head * 4.125 / 8 + 16, abs=8)
    assert need(model_of(said | {"ignore": ["re:.*lm_head$"]}), AS_IT_IS) == need(model_of(said), AS_IT_IS)


def test_a_folder_that_is_quantized_or_of_no_type_that_loads_is_planned(tmp_path: Path) -> None:
    """By its config.json alone; what is none is refused with a sentence."""
    plans = Plans(Shell(LocalRunner(Store(":memory:")), Shelf([]), [], ["demo"]))
    gpt_oss = configurations()["gpt-oss-20b"]["config"]
    for config, billions in ((LLAMA | {"quantization_config": packed()}, "8.030"), (gpt_oss, "20.915")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        text, line = list(plans.fetched(f" {tmp_path} "))[-1]
        assert f"{billions} billion" in line and json.loads(text)["quantization_config"] == config["quantization_config"]
    for wrong in ("", "[]", "[" * 100_000, "{}"):
        (tmp_path / "config.json").write_text(wrong)
        assert "not valid: it must be JSON with a model_type" in list(plans.fetched(str(tmp_path)))[-1][1]
    (tmp_path / "config.json").unlink()
    assert "holds no readable config.json" in list(plans.fetched(str(tmp_path)))[-1][1]


UNCOUNTED = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 4}, "awq", {"quant_method": ["awq"]},
    {"quant_method": "awq", "bits": "4", "group_size": 128},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*down": {"bits": 8}}}, packed(num_bits=3),
    packed() | {"ignore": ["re:.*(gate|up)_proj"]}, packed() | {"ignore": ["model.layers.0.self_attn"]}, packed() | {"ignore": ["re:" + "a*" * 200]},
    {"quant_method": "fp8", "weight_block_size": 128}, {"quant_method": "mxfp4"}, {"quant_method": "compressed-tensors", "config_groups": {}},
]  # fmt: skip


@pytest.mark.parametrize("said", UNCOUNTED, ids=lambda said: str(said)[:60])
def test_what_is_not_counted_is_said(said: object) -> None:
    model = model_of(said)
    with pytest.raises(InputError, match=r"a-model is published quantized.* in a way that is not counted"):
        need(model, AS_IT_IS)
    text = json.dumps(LLAMA | {"quantization_config": said, "_name_or_path": "a-model"})
    assert "in a way that is not counted. It is planned as if it were in 16 bits." in solved(config=text)[1]
    assert "in a way that is not counted" in solved(config=text, format="published")[0]


@pytest.mark.parametrize(("layers", "names"), [(10**6, ["lm_head"]), (999, [f"re:.*{i}.*a.*b.*c.*" for i in range(300)])])
def test_a_hostile_configuration_takes_no_time(layers: int, names: list[str]) -> None:
    model = architecture(LLAMA | {"quantization_config": packed() | {"ignore": names}, "num_hidden_layers": layers})
    start = time.monotonic()
    with pytest.raises(InputError, match="not counted"):
        need(model, AS_IT_IS)
    assert time.monotonic() - start < 0.5


def test_the_first_answer_takes_a_model_as_it_is_published() -> None:
    _, said = solved(model="gpt-oss-120b", device="H100", users=1)
    assert "in MXFP4 as it is published" in said and "Use it as published; more bits would add nothing." in said
    assert "16 bits" not in said and "no quantization is needed" not in solved(model="llama-3.1-70b")[1].lower()
    wide = solved(model="gpt-oss-20b", device="H200")[1]
    assert "MXFP4 as it is published" in wide and "fit in 16 bits" not in wide, "16 bits fit, but were never published"
    deep = solved(model="deepseek-v3", device="H200", users=1)[1]
    assert "; 2 of them hold it in 3-bit g128" in deep
    eight = solved(model="deepseek-v3", device="H200", users=1, cards=8)[1]
    assert "8 × H200 hold " in eight and "in FP8 in blocks of 128 × 128 as it is published (8 share" in eight
    assert "It is published in FP8 in blocks of 128 × 128, which this rounds once more." in solved(model="deepseek-v3", device="H200", cards=4)[1]
    assert "No quantization is needed: the weights fit in 16 bits." in solved(model="llama-3.1-8b")[1]


def test_as_published_is_a_format() -> None:
    said, _ = solved(model="gpt-oss-120b", format="published")
    assert "Weights 65.2 GB (as published, MXFP4: " in said and "embedding and head in 16; 1% of the layers' weights stay in 16)" in said
    assert "Weights 141 GB (as published, in 16 bits)" in solved(format="published")[0], "most models are"
    assert "do not ask to quantize them too" in solved(format="published", everything=True)[0]
    bars = {name: json.loads(Plans(None).solved(*first()._replace(model=name))[2].plot)["data"][0]["y"] for name in ("gpt-oss-20b", "llama-3.1-8b")}
    assert "published" in bars["gpt-oss-20b"] and "published" not in bars["llama-3.1-8b"]


def test_bounds_read_what_is_published() -> None:
    """One user meets 4 of the 128 experts of gpt-oss-120b: of their 60.9 GB 1.9."""
    model = presets()["gpt-oss-120b"]
    found = need(model, AS_IT_IS)
    experts = 36 * 128 * 3 * 2880 * 2880 * 17 / 32
    assert step_weights(model, AS_IT_IS, found) == pytest.approx(found.weight_bytes - found.weights["embedding"] - experts * 124 / 128)
    h100 = next(one for one in ACCELERATORS if one.name == "H100")
    assert fit(model, AS_IT_IS, h100).count == 1 and fit(model, dataclasses.replace(AS_IT_IS, format=""), h100).count == 4


def test_what_is_published_quantized_is_planned_so_unless_another_format_is_chosen() -> None:
    """Two answers in two formats stood side by side: what an H100 holds as it is took four in 4 bits."""
    plans, gptq = Plans(None), json.dumps(LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}})
    for preset, config in (("gpt-oss-120b", ""), ("llama-3.1-8b", gptq)):
        assert plans.form(preset, config, "") == "published" == plans.form(preset, config, "q4_k")
    assert plans.form("llama-3.1-8b", "", "published") == "", "as published is 16 bits there"
    assert plans.form("llama-3.1-8b", "", "q4_k") == plans.form("llama-3.1-8b", "{", "published") == gr.skip()
    same, goal = solved(model="gpt-oss-120b", device="H100", users=1, format=plans.form("gpt-oss-120b", "", ""))
    assert "In the format set above (as published): gpt-oss-120b has 116.829 billion parameters" in same and "It needs 1 × H100," in same
    assert "One H100 holds gpt-oss-120b" in goal
    for changes, words in (
        ({}, "4-bit, groups of 128"),
        ({"group": 0}, "4-bit, a scale a channel"),
        ({"bits": 16}, "16 bits"),
        ({"format": "q6_k"}, "Q6_K (GGUF)"),
    ):
        assert f"In the format set above ({words}): " in solved(**changes)[0]


def test_a_link_s_price_and_format_follow_its_device_and_model() -> None:
    assert follows({"device": "H100"}) == {"price": 3.99, "format": ""} and follows({"device": "MI300X"})["price"] is None
    assert follows({"model": "gpt-oss-120b"}) == {"price": 2.5, "format": "published"}
    assert follows({"model": "gpt-oss-120b", "bits": 3})["format"] == "", "bits are of integers"


def test_the_command_says_what_is_published(capsys: pytest.CaptureFixture) -> None:
    integers = "4-bit, groups of 128"
    for given, words in (([], "as published"), (["--bits", "4"], integers), (["--format", ""], integers), (["--format", "fp8"], "FP8")):
        assert main(["plan", "--model", "gpt-oss-120b", *given]) == 0
        assert f"\n{words}" in capsys.readouterr().out
    assert main(["plan", "--model", "gpt-oss-120b", "--format", "published"]) == 0
    said = capsys.readouterr().out
    assert "65.2 GB as published (MXFP4)" in said and "MXFP4 as it is published" in said and "weights 65.2 GB, " in said
