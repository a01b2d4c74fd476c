"""llama.cpp as a peer on a CPU: a model of random Q4_0 weights in the shape of a known one, decoded by `llama-cpp-python`. Downloads nothing.

llama.cpp multiplies inside its graph, so what can be timed is a token through all blocks. Beside it stand this project's 4-bit products of the same
blocks, one after the other: the token's attention, norms and a head of 32 entries are in llama.cpp's time and not in ours.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.op import Packed, ops
from kernels.product import Case, random_problem
from kernels.timing import Timing, time_call

TOKENS, VOCABULARY = 48, 32


class Blocks(NamedTuple):
    """The blocks of a model: how many, width, inner width, query heads, key heads."""

    count: int
    width: int
    inner: int
    heads: int
    keys: int

    def products(self) -> list[tuple[int, int]]:
        """(N, K) of the products of a block: queries, keys and values together, gate and up together."""
        size = self.width // self.heads
        return [((self.heads + 2 * self.keys) * size, self.width), (self.width, self.width), (2 * self.inner, self.width), (self.width, self.inner)]


MODELS = {"24 blocks of Qwen2.5-0.5B": Blocks(24, 896, 4864, 14, 2), "2 blocks of Llama-3.1-8B": Blocks(2, 4096, 14336, 32, 8)}


def write(path: Path, blocks: Blocks) -> None:
    """A GGUF file of the llama architecture with random codes and small scales."""
    import gguf
    import numpy

    generator = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_block_count, blocks.count), (writer.add_context_length, 2 * TOKENS), (writer.add_embedding_length, blocks.width),
        (writer.add_feed_forward_length, blocks.inner), (writer.add_head_count, blocks.heads), (writer.add_head_count_kv, blocks.keys),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, VOCABULARY), (writer.add_tokenizer_model, "no_vocab"),
    ):  # fmt: skip
        add(value)

    def low_bit(name: str, n: int, k: int) -> None:
        raw = generator.integers(0, 256, (n, k // 32, 18), dtype=numpy.uint8)  # a scale in fp16, then 32 codes
        raw[..., :2] = numpy.array([k**-0.5 / 4], numpy.float16).view(numpy.uint8)
        writer.add_tensor(name, raw.reshape(n, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    size = blocks.width // blocks.heads
    for name in ("token_embd", "output"):
        low_bit(f"{name}.weight", VOCABULARY, blocks.width)
    writer.add_tensor("output_norm.weight", numpy.ones(blocks.width, numpy.float32))
    for i in range(blocks.count):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", numpy.ones(blocks.width, numpy.float32))
        for name, n, k in (
            ("attn_q", blocks.width, blocks.width), ("attn_k", blocks.keys * size, blocks.width), ("attn_v", blocks.keys * size, blocks.width),
            ("attn_output", blocks.width, blocks.width), ("ffn_gate", blocks.inner, blocks.width), ("ffn_up", blocks.inner, blocks.width),
            ("ffn_down", blocks.width, blocks.inner),
        ):  # fmt: skip
            low_bit(f"blk.{i}.{name}.weight", n, k)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def token(path: Path, threads: int) -> Timing:
    """Seconds of one more token, over TOKENS of them."""
    import llama_cpp as cpp

    silent = cpp.llama_log_callback(lambda level, text, data: None)
    cpp.llama_log_set(silent, ctypes.c_void_p())
    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp does not load the file")
    settings = cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 2 * TOKENS, threads, threads
    context = cpp.llama_init_from_model(model, settings)
    one = (cpp.llama_token * 1)(1)

    def step() -> None:
        if cpp.llama_decode(context, cpp.llama_batch_get_one(one, 1)):
            raise RuntimeError("llama.cpp does not decode")

    try:
        return time_call([step], torch.device("cpu"), TOKENS)
    finally:
        cpp.llama_free(context)
        cpp.llama_model_free(model)


def ours(blocks: Blocks) -> Timing:
    """Seconds of all 4-bit products of a token, groups of 32 as Q4_0 has, every block with its own weights."""
    form = next(form for form in ops()["int4_matmul"].cpu)
    calls = []
    for n, k in blocks.products():
        x, weight = random_problem(Case(1, n, k, 4, 32), torch.Generator().manual_seed(0))
        packed, x = form.pack(weight), x.bfloat16()
        copies = [{name: tensor.clone() for name, tensor in packed.tensors.items()} for _ in range(blocks.count)]
        calls.append([(x, Packed(tensors, packed.meta)) for tensors in copies])
    return time_call([lambda: [form.run(x, packed) for block in zip(*calls, strict=True) for x, packed in block]], torch.device("cpu"), TOKENS)


def compare() -> Iterator[dict[str, Any]]:
    """A row a model: {"blocks", "us", "llama_cpp_us", "ratio"}, how many times longer llama.cpp takes, or {"blocks", "why"} it cannot run."""
    for name, blocks in MODELS.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "random.gguf"
                write(path, blocks)
                theirs = token(path, torch.get_num_threads())
        except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
            yield {"blocks": name, "why": f"{type(error).__name__}: {str(error)[:160]}"}
            continue
        own = ours(blocks)
        yield {"blocks": name, "us": own.median * 1e6, "llama_cpp_us": theirs.median * 1e6, "ratio": theirs.median / own.median}
