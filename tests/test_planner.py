"""The planner against what is measured, against published counts, against transformers' own models; bounds by hand; bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import gradio as gr
import pytest
import torch

from explorer import kvcache, models
from explorer.__main__ import main
from explorer.accelerators import ACCELERATORS, Accelerator, fit, most_users, on_each, spread, widths
from explorer.families import Architecture, architecture, pasted
from explorer.hub import Hub
from explorer.methods import build
from explorer.planner import Plan, activation_bytes, copies, decode_work, kv_bytes, need, prompt_work, step_bytes
from explorer.presets import configurations, presets
from explorer.records import InputError
from explorer.ui.status import many
from explorer.ui.tabs.planner.handlers import Plans, as_typed, first

# As the models' publishers count them (safetensors metadata of each repository); Gemma 3 less its tower for images and the projector behind it,
# DeepSeek-V3 without its layer that predicts a second token.
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-7b": 7_615_616_512, "qwen2.5-72b": 72_706_203_648, "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704, "qwen3-8b": 8_190_735_360, "qwen3-30b-a3b": 30_532_122_624, "phi-4": 14_659_507_200, "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672, "gemma-3-27b": 27_432_406_640 - 423_060_336, "deepseek-v3": 671_026_419_200,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}


@pytest.fixture(scope="module")
def demo() -> models.LoadedModel:
    return models.load(models.resolve("demo", Hub()), torch.device("cpu"), Hub())


def device(name: str) -> Accelerator:
    return next(a for a in ACCELERATORS if a.name == name)


def shipped(name: str) -> Architecture:
    return presets()[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    assert shipped(name).parameters == PUBLISHED[name]


# hidden, intermediate, layers, heads, key and value heads, vocabulary, the rest; the last number as the publishers count it
OTHERS = [
    ("gemma2", (3584, 14336, 42, 16, 8, 256000), {"head_dim": 256}, 9_241_705_984),
    ("gemma3_text", (1152, 6912, 26, 4, 1, 262144), {"head_dim": 256, "sliding_window": 512}, 999_885_952),
]  # fmt: skip


@pytest.mark.parametrize(("family", "sizes", "more", "count"), OTHERS)
def test_published_counts_of_families_that_are_not_shipped(family: str, sizes: tuple, more: dict, count: int) -> None:
    """Gemma-2-9B and Gemma-3-1B."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    assert architecture({"model_type": family, **dict(zip(names, sizes, strict=True)), **more}).parameters == count


MIXED = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 6, "n_group": 1, "topk_group": 1}
CONFIGS = [
    ("llama", {}), ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}), ("mistral", {"head_dim": 32}), ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}), ("qwen2", {"use_sliding_window": True, "sliding_window": 32}),
    ("qwen3", {"head_dim": 8}), ("qwen3", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1, "attention_bias": True}),
    ("mixtral", {"num_local_experts": 4}), ("phi3", {"sliding_window": 32}), ("gemma2", {}), ("gemma2", {"sliding_window": 32, "head_dim": 24}),
    ("gemma3_text", {"num_hidden_layers": 7}), ("gemma3_text", {"num_hidden_layers": 7, "sliding_window": 16, "attention_bias": True}),
    ("qwen3_moe", {**MIXED, "head_dim": 8}), ("qwen3_moe", {**MIXED, "head_dim": 8, "num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    ("gpt_oss", {**MIXED, "sliding_window": 16}), ("deepseek_v3", {**MIXED, **LATENT, "q_lora_rank": 40, "first_k_dense_replace": 1, "n_shared_experts": 2}),
    ("deepseek_v3", {**MIXED, **LATENT, "q_lora_rank": None, "first_k_dense_replace": 2, "n_shared_experts": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "more"), CONFIGS)
def test_sizes_and_windows_equal_those_of_transformers(family: str, more: dict) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SMALL, **more}, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    counted = architecture({**SMALL, **more, "model_type": family}, family)
    corrections = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]  # of DeepSeek's routers: stored, not trained
    assert counted.parameters == sum(tensor.numel() for tensor in (*model.parameters(), *corrections))
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    assert counted.windowed == kinds.count("sliding_attention") and counted.window == (window if counted.windowed else 0)
    assert architecture(config.to_dict(), family) == dataclasses.replace(counted, context=config.max_position_embeddings), "as transformers writes it"
    if counted.latent is None:  # transformers keeps those keys and values spelt out
        assert {bits: kv_bytes(counted, 100, bits) for bits in (16, 4)} == {bits: kvcache.bytes_at(config, 100, bits) for bits in (16, 4)}


def test_the_demo_models_bytes_are_exact(demo: models.LoadedModel) -> None:
    model = presets()["demo"]
    assert need(model, Plan()).weight_bytes == sum(p.numel() * p.element_size() for p in demo.model.parameters())
    for bits, group, zeros in ((8, 0, False), (4, 64, False), (3, 32, True), (2, 128, True)):
        params = {"bits": bits, "symmetric": not zeros} | ({"group_size": group} if group else {"granularity": "channel"})
        method = build("rtn", params)
        stored = sum(method.quantize(layer.weight.float(), None).stored_bits() for layer in models.linears(demo.model).values())
        found = need(model, Plan(bits, group, zeros=zeros))
        assert found.weights["attention"] + found.weights["feed-forward"] == stored // 8
        assert found.bits_per_weight == pytest.approx(stored / sum(x.weight.numel() for x in models.linears(demo.model).values()), rel=1e-12)
    for bits in (16, 8, 4, 2):
        assert kv_bytes(model, 512, bits) == kvcache.bytes_at(demo.model.config, 512, bits)


def test_seventy_billion_parameters() -> None:
    """141 GB in BF16; in INT4 the blocks are a quarter, about 35 GB, and embedding and head in 16 bits come on top."""
    model = shipped("llama-3.1-70b")
    sizes = dict(widths(model, Plan()))
    assert sizes["BF16"].weight_bytes / 1e9 == pytest.approx(141.1, abs=0.05)
    blocks = sizes["INT4"].weights["attention"] + sizes["INT4"].weights["feed-forward"]
    assert blocks / 1e9 == pytest.approx(35.3, abs=0.1) and sizes["INT4"].weight_bytes / 1e9 == pytest.approx(39.5, abs=0.1)
    assert need(model, Plan(bits=4, everything=True)).weight_bytes / 1e9 == pytest.approx(36.4, abs=0.1)
    assert kv_bytes(model, 1, 16) == 320 * 1024, "320 KiB a token with eight key and value heads"


def test_bounds_by_hand() -> None:
    """H100 at 3.35 TB/s, one user, no context to speak of: 8 B parameters read 16.06 GB less the embedding's 1.05 GB: 223 tokens/s."""
    model, card = shipped("llama-3.1-8b"), device("H100")
    plan = Plan(context=1)
    found = need(model, plan)
    read = 2 * (8_030_261_248 - 128256 * 4096) + 131072
    assert step_bytes(model, plan, found) == read
    one = fit(model, plan, card, price=3.6, reached=0.5)
    assert one.count == 1 and one.bound == pytest.approx(3.35e12 / read)
    assert one.dollars == pytest.approx(3.6 / (0.5 * one.bound * 3600) * 1e6) and one.dollars != fit(model, plan, card).dollars
    assert fit(shipped("llama-3.1-70b"), Plan(), card).count == 2 and fit(shipped("llama-3.1-405b"), Plan(users=10**5), card).count == 0
    each = 2 * (3 * 4096 + 3 * 14336) + 4 * 128256
    assert (
        one.users
        == most_users(model, plan, found, card, 1)
        == int((79.1 * 2**30 * 0.9 - found.weight_bytes - activation_bytes(model, plan) + each) / (131072 + each))
    )


def test_what_no_link_joins_is_counted_once() -> None:
    """An M4 holds 8 B parameters in 4 bits and not 70 B, however many there are; what is not rented has no price."""
    mac = device("Apple M4 16 GB")
    assert fit(shipped("llama-3.1-8b"), Plan(bits=4), mac).count == 1 and fit(shipped("llama-3.1-70b"), Plan(bits=4), mac).count == 0
    assert all((a.price is None) == ("price" not in a.source) for a in ACCELERATORS) and fit(shipped("llama-3.1-8b"), Plan(bits=4), mac).dollars is None
    assert all(a.price for a in ACCELERATORS if a.name in ("H100", "H200", "B200", "A100 40 GB"))


def test_experts_meet_more_weights_as_users_grow() -> None:
    model = shipped("mixtral-8x7b")
    blocks = need(model, Plan()).weights["feed-forward"]
    one, many = (step_bytes(model, plan, need(model, plan)) - need(model, plan).kv for plan in (Plan(users=1), Plan(users=64)))
    assert many - one == pytest.approx(0.75 * blocks, rel=1e-6), "one token meets two experts of eight, 64 meet all"


def test_window_bounds_the_cache() -> None:
    """Qwen2 limits only the layers from max_window_layers on: with all 28 below it the cache of 131,072 tokens takes 7.52 GB, not 0.23."""
    config = configurations()["qwen2.5-7b"]["config"] | {"use_sliding_window": True, "sliding_window": 4096}
    assert kv_bytes(architecture(config | {"max_window_layers": 28}), 131072, 16) / 1e9 == pytest.approx(7.52, abs=0.01)
    half = kv_bytes(architecture(config | {"max_window_layers": 14}), 131072, 16)
    assert half == (kv_bytes(architecture(config | {"max_window_layers": 0}), 131072, 16) + kv_bytes(architecture(config), 131072, 16)) // 2
    assert kv_bytes(shipped("mistral-7b"), 32768, 16) == kv_bytes(shipped("mistral-7b"), 4096, 16) < kv_bytes(shipped("llama-3.1-8b"), 32768, 16)


@pytest.mark.parametrize(("more", "most"), [({}, 1.2), ({"intermediate_size": 512}, 1.2), ({"intermediate_size": 256, "head_dim": 128}, 1.8)])
def test_activations_against_the_measured_peak(more: dict, most: float) -> None:
    """Of one prefill of 256 tokens through transformers' eager blocks, by the profiler's allocations. Where attention is the widest these copy heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**SMALL, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, **more}
    config = AutoConfig.for_model("llama", **sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model, tokens = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval(), torch.zeros(1, 256, dtype=torch.long)
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        model(tokens, use_cache=False, logits_to_keep=1)
    moves = sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    peak = max(itertools.accumulate(size for _, size in moves))
    assert 0.95 <= peak / activation_bytes(architecture({**sizes, "model_type": "llama"}), Plan(context=256)) <= most


def test_more_devices_than_heads_copy_the_cache() -> None:
    """qwen2.5-7b in 16 bits, 64 users at 32k: four key and value heads, so tensor parallelism over eight L4 holds the cache twice: 240.5 GB."""
    model, plan, l4 = shipped("qwen2.5-7b"), Plan(context=32768, users=64), device("L4")
    assert [copies(model, n) for n in (1, 2, 4, 8, 64)] == [1, 1, 1, 2, 16] and copies(shipped("qwen2.5-0.5b"), 4) == 2
    found = need(model, plan)
    assert found.kv * copies(model, 8) / 1e9 == pytest.approx(240.5, abs=0.1) and 8 * l4.bytes() / 1e9 == pytest.approx(170.3, abs=0.5)
    assert spread(model, plan, l4, 8, 8) is None and spread(model, plan, l4, 64, 64) is None, "each device would hold a whole head of every user"
    one = fit(model, plan, l4)
    assert (one.count, one.together) == (8, 4) and one.users == 2 * most_users(model, dataclasses.replace(plan, users=32), found, l4, 4) >= 64
    narrow = on_each(model, plan, found, 4) - (found.weight_bytes + found.kv) / 4
    assert narrow > activation_bytes(model, plan) / 4, "the residual stands on each device"


def test_the_bound_is_the_slower_of_reading_and_multiplying() -> None:
    """An A100 multiplies 312 TFLOP/s: 8 B parameters less the embedding allow 20,786 tokens/s, attention over 512 tokens takes 2% of that."""
    model, card = shipped("llama-3.1-8b"), device("A100 80 GB")
    inside = 8_030_261_248 - 128256 * 4096 - (2 * 32 + 1) * 4096
    assert decode_work(model, 512) == 2 * inside + 4 * 32 * 128 * 512 * 32
    many, one = (fit(model, Plan(bits=4, context=512, users=users), card, reached=1.0) for users in (1000, 1))
    assert (many.limit, one.limit) == ("compute", "bandwidth") and many.bound == pytest.approx(312e12 / decode_work(model, 512)) and many.bound < 20_786
    assert many.dollars == pytest.approx(2.5 / (many.bound * 3600) * 1e6) and many.prompt == pytest.approx(312e12 / prompt_work(model, 512))
    assert prompt_work(model, 512) == pytest.approx(2 * (inside - 128256 * 4096) + 2 * 128256 * 4096 / 512 + 4 * 32 * 128 * 32 * 513 / 2)
    mixed = shipped("mixtral-8x7b")
    assert decode_work(mixed, 1) == pytest.approx(
        2 * (mixed.parameters - mixed.parts()["embedding"] - 65 * 4096 - 0.75 * mixed.parts()["feed-forward"]), rel=1e-4
    )


def test_latent_attention_caches_one_vector_a_token() -> None:
    """DeepSeek-V3's sizes: 671 billion parameters, 37 billion at work, 576 values a token and layer."""
    sizes = {"hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128, "vocab_size": 129280}
    more = {"moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3}
    ranks = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    model = architecture({"model_type": "deepseek_v3", **sizes, **more, **ranks})
    assert model.parameters / 1e9 == pytest.approx(671.0, abs=0.1) and (model.used() + 2 * 129280 * 7168) / 1e9 == pytest.approx(37.5, abs=0.5)
    assert kv_bytes(model, 1, 16) == 2 * 61 * 576 and copies(model, 8) == 8


MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "no JSON"), ("[]", "no object"), ("{}", "none of them"), ('{"model_type": "llama"}', "needs 'num_attention_heads'"),
     (json.dumps({**SMALL, "model_type": "llama", "hidden_size": "64"}), "needs 'hidden_size'"),
     (json.dumps({**SMALL, "model_type": "llama", "vocab_size": -1}), "needs 'vocab_size'"), ("[" * 50_000, "no JSON"),
     (json.dumps({**SMALL, "model_type": "qwen3_moe", "mlp_only_layers": 5, **MOE}), "'mlp_only_layers' as a list"),
     (json.dumps({**SMALL, "model_type": "qwen3_moe", **MOE, "num_experts_per_tok": 16}), "8 experts, of which no token can meet 16"),
     (json.dumps({**SMALL, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -8}), "needs 'max_window_layers'"),
     (json.dumps({"model_type": "gemma3", "text_config": {}}), "Paste what stands under its text_config")],
)  # fmt: skip
def test_bad_configurations_are_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        pasted(text)


def test_the_tab_answers_or_says_why_not() -> None:
    plans = Plans(None)
    words, table, _, _ = plans.solved(*first())
    assert "70.554 billion" in words and "class='chosen'" in table and "A100 80 GB" in table
    assert "39.5 GB (4.125 bits a weight; embedding and head in 16)" in words and "1 × A100 80 GB, which then holds 13 users" in words
    assert (
        "bound by memory bandwidth" in words
        and "million tokens of prompt cost another $" in words
        and (many(1, "user"), many(2, "user")) == ("1 user", "2 users")
    )
    evil = json.dumps({**SMALL, "model_type": "llama", "_name_or_path": "<img src=x>"})
    assert "<img" not in "".join(str(part) for part in plans.solved(*first()._replace(config=evil))[:2])
    rows = re.findall("<tr.*?</tr>", table)
    assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1 and "4.38&nbsp;+&nbsp;0.66" in table
    for name, value, said in (
        ("config", "{", "no JSON"),
        ("context", None, "Context needs a number"),
        ("users", float("nan"), "Users needs"),
        ("price", -3, "dollars"),
        ("device", "X", "Choose"),
    ):
        assert said in plans.solved(*first()._replace(**{name: value}))[0], (name, value)


def test_a_number_outside_a_slider_is_refused_as_it_was_typed() -> None:
    """The page sends what is typed before it moves it to the bound: until then no answer of another number stands beside it."""
    slider = as_typed(gr.Slider(512, 131072, 8192, step=512))
    assert [slider.preprocess(value) for value in (-5, 1000, 10**9, None, float("nan"))] == [-5, 1000, 10**9, None, None]
    for name, value, said in (
        ("context", 100, "Context takes a whole number from 512 to 131,072, not 100."), ("context", 1000.5, "131,072, not 1,000.5."),
        ("users", 1.7, "from 1 to 256, not 1.7."), ("users", 257, "from 1 to 256, not 257."),
        ("reached", 33.3, "The share takes a whole number from 5 to 100, not 33.3."), ("reached", 4, "not 4."),
    ):  # fmt: skip
        line, *rest = Plans(None).solved(*first()._replace(**{name: value}))
        assert said in line and all(part == gr.skip() for part in rest), (name, value)


def test_the_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["plan", "--model", "llama-3.1-70b", "--bits", "4", "--group-size", "128", "--context", "8192", "--users", "10", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == PUBLISHED["llama-3.1-70b"] and document["need"]["weights"]["output head"] == 2 * 128256 * 8192
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "model_type": "llama"}))
    assert main(["plan", "--model", str(tmp_path)]) == 0 and "estimated" in capsys.readouterr().out
    assert main(["plan", "--reached", "0.4"]) == 0 and "a million decoded tokens at 40% of that" in capsys.readouterr().out
    assert main(["plan", "--model", "nothing"]) == 2 and main(["plan", "--bits", "7"]) == 2 and main(["plan", "--price", "nan"]) == 2
    assert dataclasses.asdict(Plan())["bits"] == 16
