"""Quantizes a large random checkpoint, scores it, and measures the peak memory: `python -m tests.big_model --gigabytes 2`. A small one is a test.

--offloaded: as where the model does not fit whole, see explorer/offload.py. --keep FOLDER: makes the checkpoint there, or takes the one that is there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

import explorer.experiment  # noqa: F401 - all that a run imports, so that imports are no part of the peak
from explorer import models, sizes
from explorer.checkpoint import check_config
from explorer.data import bundled_text
from explorer.hub import Hub
from explorer.methods import build
from explorer.metrics import Subject, metrics
from explorer.quantizing import quantize
from explorer.records import Measurement, TextRef
from kernels.timing import device_name

RESULTS = Path(__file__).parent.parent / "assets" / "large.json"


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


class Asked(NamedTuple):
    """How a model is to be quantized: method, as where it does not fit whole, two windows of how many tokens are scored (0 for none), the device, and
    bytes of a GPU that may be used at most (0 for all).
    """

    method: str
    offloaded: bool = False
    scored: int = 0
    device: str = "cpu"
    limit: float = 0.0


def work(folder: Path, asked: Asked, out: multiprocessing.connection.Connection) -> None:
    """Loads, quantizes, scores, and sends {stage: peak memory}, in a process of its own."""
    device = torch.device(asked.device)
    if asked.offloaded:
        sizes.whole = lambda weight, on_gpu: float("inf")
    if asked.limit:
        torch.cuda.set_per_process_memory_fraction(asked.limit / torch.cuda.get_device_properties(device).total_memory)
    peak, stop = resident(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak.update({name: max(peak[name], value) for name, value in resident().items()})

    start_memory = dict(peak)
    threading.Thread(target=watch, daemon=True).start()
    check_config(folder)
    start = time.perf_counter()
    loaded = models.load(models.resolve(str(folder), Hub()), device, Hub())
    rows = models.windows(loaded, bundled_text("evaluation"), 2 * asked.scored, asked.scored) if asked.scored else torch.zeros(1, 8, dtype=torch.long)
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), rows, 0.0)
    stages = {"loaded": resident()}
    steps = quantize(subject, build(asked.method, {}), TextRef("bundled", "", 2048, 512), bundled_text("calibration"))
    done = 0
    while True:
        try:
            done = next(steps).done
        except StopIteration as end:
            subject = end.value[0]
            break
    quantized, stages["quantized"] = time.perf_counter(), dict(peak)
    found = {m.metric: m.value for m in metrics()["quality"].measure(subject) if isinstance(m, Measurement)} if asked.scored else {}
    stop.set()
    packed = sum(sum(layer.packed_bytes().values()) for layer in subject.layers.values())
    codes = sum(q.codes.numel() for q in subject.qtensors.values())
    out.send({
        "method": asked.method, "layers": done, "parameters": sum(p.numel() for p in loaded.model.parameters()), "seconds": quantized - start,
        "before": start_memory, **stages, "peak": peak, "packed_bytes": packed, "quantized_bytes": packed + codes, "offloaded": loaded.offloaded,
        "tokens": rows.numel(), "score_seconds": time.perf_counter() - quantized, "kld_mean": found.get("kld_mean"),
        "device": device_name(device), "gpu_peak": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    })  # fmt: skip


def measured(folder: Path, asked: Asked) -> dict[str, Any]:
    """What quantizing a folder's model takes, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, asked, theirs))
    process.start()
    theirs.close()
    with ours:
        found = ours.recv()
    process.join()
    return {"checkpoint_gb": sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9} | found


def write(found: dict[str, Any]) -> None:
    """Puts what was measured in the place of the same measurement of before, with the device, the date and whether the machine was busy."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [row for row in rows if any(row[name] != found[name] for name in ("parameters", "method", "offloaded", "device"))]
    about = {
        "torch": torch.__version__,
        "date": f"{datetime.date.today()}",
        "busy": os.getloadavg()[1] > 1.5 * len(os.sched_getaffinity(0)),
    }
    rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()} | about)
    RESULTS.write_text(json.dumps(sorted(rows, key=lambda row: (row["parameters"], row["method"], row["offloaded"])), indent=1) + "\n")


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint")
    top.add_argument("--methods", default="rtn", help="comma-separated")
    top.add_argument("--offloaded", action="store_true")
    top.add_argument("--score", type=int, default=0, help="tokens of each of two windows that both models are scored on; 0 for none")
    top.add_argument("--write", action="store_true", help="also write assets/large.json, from which the table of docs/RESULTS.md is made")
    top.add_argument("--device", default="cpu")
    top.add_argument("--limit", type=float, default=0.0, help="GB of a GPU that may be used, so that a small one is tried on a large one")
    top.add_argument("--keep", type=Path, help="a folder for the checkpoint")
    args = top.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.keep or Path(made) / "big"
        if not (folder / "config.json").exists():
            make(folder, args.gigabytes)
        for method in args.methods.split(","):
            found = measured(folder, Asked(method, args.offloaded, args.score, args.device, args.limit * 1e9))
            print(json.dumps(found), flush=True)
            if args.write:
                write(found)


if __name__ == "__main__":
    main()
