"""What can be planned beside plain integers: formats as the methods store them, a float8 cache, prices and numbers as typed, the first answer."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
import torch

pytest.importorskip("gradio", reason="needs gradio, which the page is made of")

import gradio as gr

from explorer import checkpoint, goal
from explorer.__main__ import main, parser
from explorer.accelerators import ACCELERATORS, fit
from explorer.commands.run import every_field, parameters
from explorer.figures.plan import summary
from explorer.input_statistics import InputStatistics
from explorer.layouts import LAYOUTS, stored_bits
from explorer.methods import build
from explorer.planner import Plan, kv_bytes, need
from explorer.presets import configurations, presets
from explorer.recorded import on_record, survey
from explorer.records import Answer, InputError
from explorer.saving import gguf
from explorer.ui.session import Shelf
from explorer.ui.tab import Shell
from explorer.ui.tabs.planner.handlers import FLOAT8, Plans, as_typed, bars, first

METHODS = {
    "awq": ("awq", {"bits": 4, "group_size": 128}), "mxfp4": ("mxfp", {"element": "e2m1"}), "nvfp4": ("nvfp4", {}), "q4_k": ("kquant", {"format": "q4_k"}),
    "q5_k": ("kquant", {"format": "q5_k"}), "q6_k": ("kquant", {"format": "q6_k"}),
    "fp8": ("fp8", {"granularity": "channel"}),
}  # fmt: skip
LLAMA = presets()["llama-3.1-8b"]


def solved(**changes: Any) -> tuple[str, str]:
    """(status, first answer) as text, of the first plan with some boxes changed, by their names."""
    answer, _, line = Plans(None).solved(*first()._replace(**changes))[0].rpartition("<div class='status")
    return tuple(unescape(re.sub("<[^>]+>", "", part)) for part in (f"<div class='{line}", answer))


def goal_of(**changes: Any) -> str:
    """The first answer, as text."""
    return solved(**changes)[1]


@pytest.mark.parametrize("width", [512, 288, 100], ids=["divided by 256", "divided by 32", "divided by neither"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_format_is_counted_as_its_method_stores_it(name: str, width: int) -> None:
    method, params = METHODS[name]
    made, stored = build(method, params), 64 * width * 16
    if not made.refuses((64, width)):
        weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
        inputs = torch.randn(32, width, generator=torch.Generator().manual_seed(1))
        folded = width * 16 if name == "awq" else 0  # its input scales, which the norm before takes, where there is one
        stored = made.quantize(weight, InputStatistics.of(inputs)).stored_bits() - folded
        assert (LAYOUTS[name].fallback is not None and width % 256 != 0) == bool(made.stored_as((64, width)))
    assert stored_bits(64, width, LAYOUTS[name]) == stored


def test_k_quants_of_a_model_whose_rows_256_does_not_divide() -> None:
    """Qwen2.5-72B's down-projections become Q8_0, not 16 bits: as Q6_K it takes 67 GB, which an H100 holds."""
    assert need(presets()["qwen2.5-72b"], Plan(format="q6_k")).weight_bytes == pytest.approx(67.28e9, rel=1e-3)
    assert need(presets()["gpt-oss-20b"], Plan(format="q4_k")).weight_bytes == pytest.approx(15.88e9, rel=1e-3)
    assert "for 1 user at 8,192 tokens in Q6_K" in solved(model="qwen2.5-72b", device="H100", users=1)[1]
    assert "Q6_K (GGUF), Q8_0 where 256 does not divide a row: 7.097 bits a weight" in solved(model="qwen2.5-72b", format="q6_k")[0]
    assert "Q6_K (GGUF): 6.562 bits a weight" in solved(model="llama-3.1-70b", format="q6_k")[0]


def test_formats_in_bits_a_weight() -> None:
    model = presets()["llama-3.1-70b"]
    found = {name: need(model, Plan(format=name)).bits_per_weight for name in LAYOUTS}
    assert found == pytest.approx({"fp8": 8.0, "nvfp4": 4.5, "q6_k": 6.5625, "q5_k": 5.5, "q4_k": 4.5, "mxfp4": 4.25, "awq": 4.15625}, abs=0.005)
    assert kv_bytes(model, 1000, 8, scaled=False) == kv_bytes(model, 1000, 16) / 2 < kv_bytes(model, 1000, 8)
    for wrong in ({"format": "zip"}, {"kv_float": True, "kv_bits": 4}):
        with pytest.raises(InputError):
            need(model, Plan(**wrong))


def test_the_tab_plans_formats_and_a_float8_cache() -> None:
    said, _ = solved(format="mxfp4", kv_bits=FLOAT8)
    assert "MXFP4: 4.250 bits a weight" in said and "KV cache 1.3 GB a user" in said
    chart = json.loads(Plans(None).solved(*first()._replace(format="nvfp4"))[2].plot)
    assert "NVFP4" in chart["data"][0]["y"]


def test_zero_is_free_and_only_an_empty_box_is_the_list_price() -> None:
    listed = next(one.price for one in ACCELERATORS if one.name == first().device)
    assert f"${listed:,.2f} an hour" in solved(price=None)[0] and "$0.00 an hour" in solved(price=0)[0] and "$7.00 an hour" in solved(price=7)[0]
    assert "from 0 to 10,000" in solved(price=-3)[0]
    box = as_typed(gr.Number(2.5, minimum=0, maximum=10_000))
    assert [box.preprocess(value) for value in (-3, 0, 2.5, None, float("nan"))] == [-3, 0, 2.5, None, None], "nothing becomes another price"


def test_what_groups_do_not_divide_is_said_to_stay_in_16_bits() -> None:
    from explorer.ui.tabs.planner.words import width

    def said(name: str, **plan: int) -> str:
        return width(presets()[name], Plan(**plan), need(presets()[name], Plan(**plan)))

    text = said("gpt-oss-120b", bits=4, group=128)
    why = "; more than 99% of the layers' weights stay in 16, because 128 does not divide rows of 2,880 (64 is the largest group that does))"
    assert text.endswith(why)
    assert "stay" not in said("gpt-oss-120b", bits=4, group=32) and "stay" not in said("llama-3.1-8b", bits=4, group=128)


def test_the_first_answer_is_the_widest_format_that_fits() -> None:
    card, plan = next(one for one in ACCELERATORS if one.name == "T4"), Plan(users=1)
    model = presets()["llama-3.1-8b"]
    _, said = solved(model="llama-3.1-8b", device="T4", users=1)
    assert (
        "llama-3.1-8b for 1 user at 8,192 tokens in INT8 (a scale a row), the most bits per weight that vLLM can load there" in said
        and " save --model meta-llama/Llama-3.1-8B --bits 8 --gran" in said
    )
    assert not any(fit(model, dataclasses.replace(plan, **one.plan), card).count == 1 for one in goal.widths(card)[:1]), "16 bits do not fit"
    bound = fit(model, dataclasses.replace(plan, **goal.INT8.plan), card).bound
    assert f"at most {bound:,.0f} tokens/s" in said and re.search(r"perplexity by [+-]0\.0\d%", said) and "11 M model" in said
    assert "No quantization is needed" in solved(model="llama-3.1-8b")[1]
    assert "does not write deepseek_v3 models so" in solved(model="deepseek-v3", device="H200", cards=4)[1]
    assert "; 2 of them hold it in 2-bit" in solved(model="deepseek-v3", device="H200")[1]
    assert "no link joins several" in solved(model="deepseek-v3", device="Apple M4 16 GB")[1]


def test_each_width_has_a_recorded_run_and_a_command() -> None:
    for width in {one.name: one for card in ACCELERATORS for one in goal.widths(card)}.values():
        bits = need(presets()["llama-3.1-8b"], dataclasses.replace(Plan(), **width.plan)).bits_per_weight
        assert width is goal.BF16 or "KL" in goal.as_text(goal.cost(width, bits, on_record())), width.name
        if width.save:
            args, usual = (parser().parse_args(["save", *shlex.split(words), "--to", "x"]) for words in (width.save, ""))
            method = build(args.method, parameters(args))
            assert args.form in ("auto", "gguf") and width.save.count("--") == sum(getattr(args, name) != given for name, given in vars(usual).items())
            spelt = {name: value for name in every_field() if (value := getattr(args, name)) is not None}
            assert all(str(getattr(type(method)(), name)) != value for name, value in spelt.items()), "what is at its default is left out"
    assert set(goal.GGUF) <= set(gguf.FAMILIES) and set(goal.LOADED) <= set(checkpoint.SUPPORTED)


def test_the_nearest_run_is_near_in_stored_bits() -> None:
    """On the bundled model, whose rows 256 does not divide, the run named q6_k stores Q8_0."""
    runs = on_record()
    found = {width.name: goal.nearest(width, bits, runs) for width, bits in ((goal.Q6_K, 6.5625), (goal.Q5_K, 5.5), (goal.Q4_K, 4.5))}
    assert {name: run.name for name, run in found.items()} == {
        "Q6_K": "RTN 6-bit g64 asymmetric",
        "Q5_K": "RTN 5-bit g64 asymmetric",
        "Q4_K": "RTN 4-bit g64 asymmetric",
    }
    assert goal.nearest(goal.Q6_K, 8.1, {key: one for key, one in runs.items() if one.experiment.spec.method == "kquant"}).name.startswith("GGUF q6_k")
    assert goal.nearest(goal.Q6_K, 6.5625, survey()) is None
    said = goal_of(model="qwen2.5-72b", device="H100", users=1)
    assert (
        "the nearest recorded run, RTN 7-bit g64 asymmetric (7.36 bits stored), changed" in said
        and "in Q6_K, the most bits per weight that llama.cpp can load" in said
    )
    nothing = goal.as_text(goal.quality(LLAMA, goal.Placement(goal.Q6_K, Plan(format="q6_k"), None), None, survey(), 11))
    assert nothing.startswith("No run that stores about 6.6 bits so is recorded here. python -m explorer save")


class Told:
    """A runner that knows the configuration of one model, whose author named a folder in it."""

    def do(self, task: str, arguments: dict) -> Iterator:
        yield Answer(task, {"config": qwen() | {"_name_or_path": "/home/author/run 7"}})


def qwen() -> dict[str, Any]:
    return configurations()["qwen2.5-0.5b"]["config"]


def test_the_command_names_the_model_that_is_planned() -> None:
    """The bundled one, which `save` takes by itself; one of the list or read by name by its hub id; of a text without a name it says what to put in."""
    plans = Plans(Shell(Told(), Shelf([]), [], ["demo"]))
    fetched, line = list(plans.fetched(" someone/a-model@v1 "))[-1]
    pasted = json.dumps(qwen() | {"_name_or_path": "/home/author/run 7"})
    known = {("qwen2.5-7b", ""): "Qwen/Qwen2.5-7B", ("", fetched): "someone/a-model@v1", ("", pasted): "MODEL", ("gemma-3-27b", ""): "MODEL"}
    for asked, name in known.items():
        said = goal.as_text(goal.written(plans.model(*asked), goal.INT8))
        assert f"save --model {name} --bits 8 --granularity channel --to my-model writes" in said and ("its hub id or folder for MODEL" in said) == (
            name == "MODEL"
        )
    assert (
        "explorer save --bits 8 --granularity channel --to my-model writes" in goal.as_text(goal.written(presets()["demo"], goal.INT8))
        and "someone/a-model@v1:" in line
    )


def test_the_command_takes_formats(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "--model", "gpt-oss-120b", "--format", "mxfp4", "--kv-bits", "fp8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["need"]["bits_per_weight"] == 4.25 and document["plan"]["kv_float"] and document["parameters"] == 116_829_156_672
    assert main(["plan", "--kv-bits", "9"]) == 2


def test_the_chart_says_which_widths_change_nothing() -> None:
    """Groups of 128 do not divide gpt-oss's rows of 2,880, so INT4's bar is as long as BF16's; the smallest bar is that of the published checkpoint."""
    drawn = bars(presets()["gpt-oss-120b"], Plan(users=10), next(one for one in ACCELERATORS if one.name == "H100"))
    said = summary(drawn)
    assert "In INT4 and below more than 99% of the layers' weights stay in 16, because 128 does not divide rows of 2,880" in said, said
    smallest = min(sum(bar["parts"].values()) for bar in drawn["bars"])
    assert f"{100 * drawn['bars'][0]['parts']['KV cache'] / smallest:.0f}% of the smallest bar" in said
    assert "In INT4" not in summary(bars(presets()["llama-3.1-8b"], Plan(), ACCELERATORS[0]))
