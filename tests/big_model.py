"""Quantizes a large random checkpoint and measures the peak memory: `python -m tests.big_model --gigabytes 2`. A small one is a test of models."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from explorer import models
from explorer.checkpoint import check_config
from explorer.data import bundled_text
from explorer.experiment import quantize
from explorer.hub import Hub
from explorer.methods import build
from explorer.metrics import Subject
from explorer.records import TextRef


def make(folder: Path, gigabytes: float) -> None:
    """A Llama of random bfloat16 weights, hidden 2,048, with as many blocks as make up that size; written shard by shard."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=4096, hidden_size=2048, intermediate_size=5632, num_attention_heads=16, num_key_value_heads=4, num_hidden_layers=1,
                         max_position_embeddings=2048, tie_word_embeddings=False)  # fmt: skip
    each = sum(p.numel() for p in LlamaForCausalLM(config).model.layers[0].parameters()) * 2
    config.num_hidden_layers = max(1, round(gigabytes * 1e9 / each))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(models.DEMO).save_pretrained(folder)
    names = sorted(shapes)
    count = max(1, round(gigabytes * 2))
    index = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {n: torch.ones(shapes[n]).bfloat16() if len(shapes[n]) == 1 else torch.randn(shapes[n]).mul_(0.02).bfloat16() for n in names[i::count]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def resident() -> dict[str, float]:
    """GB of this process that only swap could free ("anonymous"), and GB of files that the system may drop at any time ("file")."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e9 for name, key in (("anonymous", "RssAnon"), ("file", "RssFile"))}


def work(folder: Path, method: str, out: multiprocessing.connection.Connection) -> None:
    """Loads, quantizes, and sends {stage: peak memory}, in a process of its own."""
    peak, stop = resident(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak.update({name: max(peak[name], value) for name, value in resident().items()})

    start_memory = dict(peak)
    threading.Thread(target=watch, daemon=True).start()
    check_config(folder)
    start = time.perf_counter()
    loaded = models.load(models.resolve(str(folder), Hub()), torch.device("cpu"), Hub())
    at_load = resident()
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), torch.zeros(1, 8, dtype=torch.long), 0.0)
    steps = quantize(subject, build(method, {}), TextRef("bundled", "", 2048, 512), bundled_text("calibration"))
    done = 0
    while True:
        try:
            done = next(steps).done
        except StopIteration as end:
            subject = end.value[0]
            break
    stop.set()
    out.send({
        "method": method, "layers": done, "parameters": sum(p.numel() for p in loaded.model.parameters()), "seconds": time.perf_counter() - start,
        "before": start_memory, "loaded": at_load, "peak": peak,
        "quantized_bytes": sum(sum(layer.packed_bytes().values()) + q.codes.numel() for layer, q in zip(subject.layers.values(), subject.qtensors.values(),
                                                                                                   strict=True)),
    })  # fmt: skip


def measured(folder: Path, method: str) -> dict[str, Any]:
    """What quantizing a folder's model takes, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, method, theirs))
    process.start()
    theirs.close()
    with ours:
        found = ours.recv()
    process.join()
    return {"checkpoint_gb": sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9} | found


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint")
    top.add_argument("--methods", default="rtn", help="comma-separated")
    args = top.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "big"
        make(folder, args.gigabytes)
        for method in args.methods.split(","):
            print(json.dumps(measured(folder, method)))


if __name__ == "__main__":
    main()
