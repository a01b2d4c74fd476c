"""What is planned must run and its bound must hold: formats by compute capability, GGUF on one device, rounded inputs at their units' rate, what falls back
to 16 bits, and fits with next to nothing free.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio, which the page is made of")

from explorer import goal
from explorer.__main__ import main
from explorer.accelerators import ACCELERATORS, UNCOUNTED, fit, held, spread
from explorer.fallbacks import by_kind, integers, whole
from explorer.families import Architecture, architecture
from explorer.figures.plan import summary
from explorer.layouts import LLAMA_CPP
from explorer.planner import Plan, decode_work, need, prompt_work, rounded_work
from explorer.presets import configurations, presets
from explorer.published import PUBLISHED, published
from explorer.ui.tabs.planner.handlers import Plans, bars, first
from explorer.ui.tabs.planner.table import NOTE
from tests.test_plan_formats import goal_of, solved

CARDS = {one.name: one for one in ACCELERATORS}
LLAMA, GPT_OSS = presets()["llama-3.1-8b"], presets()["gpt-oss-120b"]


def quantized(said: dict[str, Any], base: str = "llama-3.1-8b") -> Architecture:
    return architecture(configurations()[base]["config"] | {"quantization_config": said})


def compressed(bits: int, inputs: tuple[str, int] | None, kind: str = "int", form: str = "int-quantized") -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "strategy": "channel"}
    rounded = {"type": inputs[0], "num_bits": inputs[1], "dynamic": True} if inputs else None
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rounded, "format": form}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def printed(capsys: pytest.CaptureFixture, *given: str) -> str:
    assert main(["plan", *given]) == 0
    return capsys.readouterr().out


def test_units_follow_the_compute_capability() -> None:
    """FP8 from Ada, 8.9, FP4 from Blackwell, 10.0."""
    for one in ACCELERATORS:
        assert (one.capability is None) == (one.name.startswith(("MI", "Apple")))
        if one.capability is not None:
            assert (one.fp8, one.fp4) == (one.capability >= 8.9, one.capability >= 10) and one.capability >= 7.5
    assert {name: CARDS[name].capability for name in ("T4", "A100 80 GB", "H100")} == {"T4": 7.5, "A100 80 GB": 8.0, "H100": 9.0}


def test_a_card_without_bfloat16_is_offered_float16(capsys: pytest.CaptureFixture) -> None:
    """vLLM refuses bfloat16 below 8.0; it loads no MXFP4 on Turing."""
    said = goal_of(model="qwen2.5-0.5b", device="T4", users=1)
    assert " in FP16, the most bits per weight that vLLM can load there (with --dtype half: it has no bfloat16)" in said and "BF16" not in said
    assert "the weights fit in 16 bits" in said and said.split(",")[0] in printed(capsys, "--model", "qwen2.5-0.5b", "--accelerator", "T4")
    assert "(with --dtype half" in goal_of(model="llama-3.1-8b", device="T4", users=1), "INT8, too, whose other layers are in 16 bits"
    assert "--dtype half" not in goal_of(model="llama-3.1-8b", device="A10G", users=1)
    for card in ACCELERATORS:
        names = [one.name for several in (False, True) for one in goal.widths(card, several)]
        assert ("FP16" in names) == (card.name == "T4") != ("BF16" in names)
        assert ("MXFP4" in names) == (card.name != "T4" and card.linked)


@pytest.mark.parametrize("several", [False, True])
def test_what_is_offered_runs_there(several: bool) -> None:
    for card in ACCELERATORS:
        for model in (LLAMA, GPT_OSS, presets()["gemma-3-27b"], quantized(compressed(8, ("int", 8)))):
            for width, _ in goal.tried(model, Plan(), card, several):
                by_itself = width.plan["format"] in LLAMA_CPP or "which llama.cpp loads there" in goal.loads(model, width, card)[0]
                if card.capability is not None and not (by_itself and not several):
                    assert 7.5 <= width.least <= card.capability < width.below, (card.name, width.name)


def test_a_checkpoint_is_offered_as_published_where_it_runs() -> None:
    """MXFP4 not by vLLM on a T4, where llama.cpp takes it on one card; INT8 with rounded inputs not on Blackwell."""
    plan = Plan(context=512)
    for name, have, own in (("T4", 1, True), ("T4", 4, False), ("RTX 3090", 1, True), ("RTX 3090", 4, True)):
        assert (goal.tried(GPT_OSS, plan, CARDS[name], have > 1)[0][0].name == "MXFP4") == own, (name, have)
    small = goal.loads(GPT_OSS, goal.own_width(GPT_OSS)[0], CARDS["T4"])
    assert small == [" as it is published, which llama.cpp loads there"]
    int8 = quantized(compressed(8, ("int", 8)))
    takes = {name: goal.tried(int8, plan, CARDS[name])[0][0].plan["format"] == PUBLISHED for name in ("H100", "A10G", "B200", "RTX 5090")}
    assert takes == {"H100": True, "A10G": True, "B200": False, "RTX 5090": False}
    weights_only = quantized(compressed(8, None, form="pack-quantized"))
    assert goal.tried(weights_only, plan, CARDS["B200"])[0][0].plan["format"] == PUBLISHED


def test_gemma_does_not_run_in_float16() -> None:
    said = goal_of(model="gemma-3-27b", device="T4", cards=4, users=1)
    assert " in any format here: it has no bfloat16, and vLLM takes no gemma3_text in float16 " in said
    assert {width.name for width, _ in goal.tried(presets()["gemma-3-27b"], Plan(), CARDS["T4"])} == {"Q6_K", "Q5_K"}, "llama.cpp's own kernels"
    assert goal.tried(LLAMA, Plan(), CARDS["T4"], True) and goal.tried(presets()["gemma-3-27b"], Plan(), CARDS["A10G"], True)


def test_several_cards_take_no_gguf(capsys: pytest.CaptureFixture) -> None:
    said = printed(capsys, "--model", "llama-3.1-405b", "--users", "2000", "--context", "512", "--accelerator", "H100", "--cards", "8")
    assert "16 of them hold it in AWQ (4-bit g128)" in said and "Q6_K" not in said
    for card in ACCELERATORS:
        offered = {one.plan["format"] for one in goal.widths(card, True)} & set(LLAMA_CPP)
        assert bool(offered) != card.linked and {one.plan["format"] for one in goal.widths(card)} & set(LLAMA_CPP)
    assert " in Q6_K, the most bits per weight that llama.cpp can load there" in goal_of(model="qwen2.5-72b", device="H100", users=1)
    assert not re.search(r"\d of them hold it in Q\d_K", "".join(goal_of(model=name, device=card.name) for name in presets() for card in ACCELERATORS))


def test_a_gguf_file_is_planned_for_one_device(capsys: pytest.CaptureFixture) -> None:
    large, plan = presets()["llama-3.1-70b"], Plan(format="q6_k")
    assert (fit(large, plan, CARDS["A10G"]).count, fit(large, plan, CARDS["A10G"]).most, fit(large, plan, CARDS["H100"]).count) == (0, 1, 1)
    assert fit(large, dataclasses.replace(plan, format="awq"), CARDS["A10G"]).count > 1 and held(large, plan, CARDS["H100"], 4).count == 1
    said = printed(capsys, "--format", "q6_k")
    assert re.search(r"A10G +more than 1 needed, and a GGUF file is planned for one\n", said) and "A GGUF file is planned for one device: " in said
    assert "More than 1 × A10G would be needed, and a GGUF file is planned for one." in solved(device="A10G", format="q6_k")[0]
    assert "GGUF file" not in printed(capsys, "--format", "awq") and "A GGUF file is planned for one device: " in NOTE


RATES = [("H100", "fp8", 2), ("A100 80 GB", "fp8", 1), ("MI300X", "fp8", 2), ("RTX 4090", "fp8", 2), ("T4", "int8", 2), ("A100 80 GB", "int8", 2),
         ("RTX 3090", "int8", 4), ("RTX 4090", "int8", 4), ("B200", "fp4", 4), ("RTX PRO 6000", "fp4", 4), ("RTX 5090", "fp4", 8), ("H100", "fp4", 1),
         ("Apple M4 Max 128 GB", "int8", 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "rate"), RATES)
def test_compute_is_counted_at_the_rate_of_the_units(name: str, inputs: str, rate: int) -> None:
    """Data sheets: 1,979 TFLOP/s in FP8 of an H100, 284 TOPS of an RTX 3090 in int8, 1,676 in FP4 of an RTX 5090. Head and attention stay in 16 bits."""
    card, users = CARDS[name], 6000
    plan = {"fp8": Plan(format="fp8"), "int8": Plan(bits=8, group=0), "fp4": Plan(format="nvfp4")}[inputs]
    plan = dataclasses.replace(plan, context=1, users=users)
    inside, head = LLAMA.parts()["attention"] + LLAMA.parts()["feed-forward"], 128256 * 4096
    attention = 4 * 32 * 128 * 32
    found = spread(LLAMA, plan, card, 1, 1)
    assert found and found.limit == "compute"
    assert found.bound == pytest.approx(card.compute * 1e12 / (2 * inside / rate + 2 * head + attention), rel=1e-9)
    assert found.prompt == pytest.approx(found.bound, rel=1e-3), "a prompt of one token is a token"
    assert spread(LLAMA, dataclasses.replace(plan, everything=True), card, 1, 1).bound == pytest.approx(
        card.compute * 1e12 / (2 * (inside + head) / rate + attention), rel=1e-9
    )


def test_attention_over_a_float8_cache_counts_at_its_rate() -> None:
    plan = Plan(format="awq", context=100_000, kv_bits=8, kv_float=True)
    work = decode_work(LLAMA, plan.context)
    attention = 4 * 32 * 128 * 32 * plan.context
    assert rounded_work(LLAMA, plan, work) == pytest.approx({"int8": 0, "fp8": attention, "fp4": 0})
    assert rounded_work(LLAMA, dataclasses.replace(plan, kv_float=False), work) == {"int8": 0, "fp8": 0, "fp4": 0}
    assert CARDS["H100"].seconds(LLAMA, plan, work) == pytest.approx((work - attention / 2) / 989e12)
    prompt = rounded_work(LLAMA, plan, prompt_work(LLAMA, plan.context), 1 / plan.context)["fp8"]
    assert prompt == pytest.approx(attention / 2, rel=1e-4), "causal attention sees half as far"


def test_what_a_checkpoint_rounds_its_inputs_to() -> None:
    found = {
        "int8": compressed(8, ("int", 8)), "fp8": compressed(8, ("float", 8), "float", "float-quantized"), "": compressed(8, None, form="pack-quantized"),
    }  # fmt: skip
    for inputs, said in found.items():
        assert published(quantized(said)).layout.inputs == inputs
        work = rounded_work(quantized(said), Plan(format=PUBLISHED), 0)
        assert {name for name, part in work.items() if part} == {inputs} - {""}
    assert published(quantized(compressed(4, ("int", 8), form="pack-quantized"))).layout.inputs == "int8", "W4A8"
    assert published(presets()["deepseek-v3"]).layout.inputs == "fp8" and published(GPT_OSS).layout.inputs == "fp4"
    experts = sum(one.parameters for one in GPT_OSS.matrices() if one.routed) * GPT_OSS.active / GPT_OSS.experts
    assert rounded_work(GPT_OSS, Plan(format=PUBLISHED), 0)["fp4"] == pytest.approx(2 * experts)
    gguf = rounded_work(GPT_OSS, Plan(format="q4_k"), 0)
    assert gguf["int8"] == pytest.approx(2 * (GPT_OSS.used() - GPT_OSS.parts()["router"])), "what takes the place of Q4_K is of GGUF, too"


def test_the_command_says_how_compute_is_counted(capsys: pytest.CaptureFixture) -> None:
    rule = "Compute counts layers whose inputs software may round"
    assert rule in printed(capsys) and rule in NOTE and "can pass a bound" not in NOTE
    assert json.loads(printed(capsys, "--json"))["notes"]["compute"].startswith(rule)


def test_what_falls_back_is_said_alike_everywhere(capsys: pytest.CaptureFixture) -> None:
    plan = Plan(bits=4, group=128)
    said = whole(GPT_OSS, plan)
    assert said == "more than 99% of the layers' weights stay in 16, because 128 does not divide rows of 2,880 (64 is the largest group that does)"
    assert not whole(GPT_OSS, dataclasses.replace(plan, group=64)) and not integers(LLAMA, Plan()) and not whole(LLAMA, Plan(format=PUBLISHED))
    text = printed(capsys, "--model", "gpt-oss-120b", "--bits", "4")
    assert f"233 GB in INT2, 65.2 GB as published (MXFP4). In INT4 and below {said}.\n" in text and f"activations 177.8 MB; {said}\n" in text
    assert said in solved(model="gpt-oss-120b", bits=4, group=128)[0]
    assert f"In INT4 and below {said}." in summary(bars(GPT_OSS, plan, CARDS["H100"]))
    odd = architecture(configurations()["qwen2.5-0.5b"]["config"] | {"hidden_size": 840, "num_attention_heads": 14, "head_dim": 60})
    assert "(no group does, a scale a channel does)" in whole(odd, plan) and not whole(odd, dataclasses.replace(plan, group=0))


def test_the_document_lists_formats_by_kind_of_matrix(capsys: pytest.CaptureFixture) -> None:
    document = json.loads(printed(capsys, "--model", "gpt-oss-120b", "--bits", "4", "--json"))
    kinds = {one["kind"]: one for one in document["layout"]}
    assert (kinds["gate"]["format"], kinds["gate"]["bits_per_weight"], kinds["gate"]["fell_back"]) == ("16 bits", 16, True)
    assert (kinds["output"]["inputs"], kinds["output"]["format"], kinds["output"]["fell_back"]) == (4096, "4-bit, groups of 128", False)
    assert document["note"] == whole(GPT_OSS, Plan(bits=4)) and [one["note"] == document["note"] for one in document["widths"]] == [False] * 2 + [True] * 3
    assert document["widths"][2]["weight_bytes"] == need(GPT_OSS, Plan(bits=4)).weight_bytes
    q4 = {one["kind"]: one for one in by_kind(GPT_OSS, Plan(format="q4_k", everything=True))}
    assert (q4["gate"]["format"], q4["gate"]["bits_per_weight"], q4["gate"]["fell_back"]) == ("Q5_0", 5.5, True) and q4["output head"]["fell_back"]
    whole_bits = {one["kind"]: one for one in by_kind(GPT_OSS, Plan(format=PUBLISHED))}
    assert not any(one["fell_back"] for one in whole_bits.values()) and whole_bits["gate"]["format"] == "MXFP4" and whole_bits["query"]["format"] == "16 bits"
    size = sum(one["bits_per_weight"] * m.parameters for one, m in zip(document["layout"], GPT_OSS.matrices(), strict=True)) / 8
    assert size == document["need"]["weights"]["attention"] + document["need"]["weights"]["feed-forward"]


def test_a_first_answer_says_what_its_format_leaves_in_16_bits() -> None:
    """Heads of 98 values: 128 does not divide the rows of the output projection, and AWQ leaves it."""
    odd, card = architecture(configurations()["llama-3.1-8b"]["config"] | {"head_dim": 98}), CARDS["RTX 3060"]
    users = next(n for n in range(1, 99) if (found := goal.placement(odd, Plan(users=n), card, 2)) and found.width.name.startswith("AWQ"))
    left = whole(odd, Plan(format="awq"))
    assert left.endswith("because 128 does not divide rows of 3,136 (64 is the largest group that does)")
    assert f". In it {left}. " in goal.as_text(goal.goal(odd, Plan(users=users), card, 2, {}, 11))
    assert "In it" not in goal_of() and " in AWQ" in goal_of()


def tightest(free: float) -> int:
    """The users of an 8 B model in 16 bits on an A100 with which about so large a share of what may be filled stays free."""
    card = CARDS["A100 80 GB"]
    return next(users for users in range(1, 200) if (found := spread(LLAMA, Plan(users=users), card, 1, 1)) and found.free < free * card.bytes())


def test_next_to_nothing_free_is_tight(capsys: pytest.CaptureFixture) -> None:
    users, card = tightest(0.05), CARDS["A100 80 GB"]
    for more, tight in ((-1, False), (0, True)):
        found = fit(LLAMA, Plan(users=users + more), card)
        assert (found.count, found.tight, found.free < 0.05 * card.bytes()) == (1, tight, tight) and found.free > 0
        said = printed(capsys, "--model", "llama-3.1-8b", "--bits", "16", "--users", str(users + more))
        row = next(line for line in said.splitlines() if line.startswith(card.name))
        assert (", tight, decode" in row) == tight and (f"tight, as {UNCOUNTED}, and it decodes" in said.splitlines()[1]) == tight
        page, answer = solved(model="llama-3.1-8b", bits=16, users=users + more)
        assert (f"that is tight: less than 5% of what may be filled stays free, and {UNCOUNTED}" in page) == tight == ("tight" in answer)
        cell = re.search(r">A100 80 GB</th><td>([^<]*)", Plans(None).solved(*first()._replace(model="llama-3.1-8b", bits=16, users=users + more))[1])
        assert cell[1] == ("1 (tight)" if tight else "1")
        document = json.loads(printed(capsys, "--model", "llama-3.1-8b", "--bits", "16", "--users", str(users + more), "--json"))
        fits = {one["accelerator"]["name"]: one for one in document["fits"]}
        assert fits[card.name]["tight"] == document["goal"]["fit"]["tight"] == tight and fits[card.name]["free"] == pytest.approx(found.free)
        assert ("tight" in document["notes"]) == any(one["tight"] for one in fits.values())
