"""Tables of the pages from what tests and tools recorded in assets/: public quantizers beside ours, large models, machine code,
token loops, the service under load.
"""

from __future__ import annotations

import json
from pathlib import Path

from explorer import sizes
from explorer.presets import presets
from explorer.records import significant

ASSETS = Path(__file__).parent.parent / "assets"


def quantizer_peers_table() -> str:
    """How long GPTQ, AWQ and HQQ take here and in public implementations, from assets/quantizer_peers.json."""
    record = json.loads((ASSETS / "quantizer_peers.json").read_text())
    found: dict[tuple, dict[str, dict]] = {}
    for row in record["rows"]:
        found.setdefault((row["method"], row["n"], row["k"]), {})[row["who"]] = row
    rows = ["| method | weight | here, s | peer | peer, s | peer / here | output error here, peer |", "|" + "---|" * 7]
    for (method, n, k), pair in sorted(found.items(), key=lambda item: (item[0][2], item[0][0])):
        own, peer = pair.pop("this project"), next(iter(pair.values()))
        start = f"| {method} | {n} x {k} | {significant(own['seconds'])} | {peer['who']} {peer.get('version', '')} |"
        if "why" in peer:
            rows.append(f"{start} {peer['why']} | | {own['error']:.4f} |")
        else:
            ratio = peer["seconds"] / own["seconds"]
            rows.append(f"{start} {significant(peer['seconds'])} | {ratio:.1f} | {own['error']:.4f}, {peer['error']:.4f} |")
    what = "4 bits in groups of 128, 2,048 calibration tokens; AWQ's clipping search on 256 of the outputs, to which AutoAWQ's time is proportional."
    busy = f" The machine was busy: {record['busy']}." if record["busy"] else ""
    origin = f"{record['device']}, torch {record['torch']}, {record['date']}.{busy} Command: `python -m tests.quantizer_peers --write`."
    return "\n".join([*rows, "", f"{what} {origin}"])


def large_table() -> str:
    """What quantizing models of billions of parameters takes, from assets/large.json."""
    path = ASSETS / "large.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    table = ["| parameters | method | how | time, s | most memory, GB | packed, GB |", "|" + "---|" * 6]
    for row in rows:
        how = "offloaded" if row["offloaded"] else "whole"
        time = f"{row['seconds']:,.0f}{', on a busy machine' if row['busy'] else ''}"
        start = f"| {row['parameters'] / 1e9:.1f} B, {row['checkpoint_gb']:.1f} GB on disk | {row['method']} | {how} | {time} |"
        most = row["gpu_peak"] if row.get("gpu_peak") else row["peak"]["anonymous"]
        table.append(f"{start} {most:.1f} | {row['packed_bytes'] / 1e9:.1f} |")
    origins = {f"{row['device']}, torch {row['torch']}, {row['date']}" for row in rows}
    told = f"Memory that only swap could free; pages of files, which the system may drop, are not counted. {'; '.join(sorted(origins)) or 'Not measured yet'}."
    guessed = ", ".join(f"{name} {offloaded_gb(name):.0f} GB" for name in ("llama-3.1-8b", "llama-3.1-70b"))
    told = f"Estimated need of a GPU at 4 bits, offloaded: {guessed}. {told}"
    return "\n".join([*table, "", f"{told} Command: `python -m tests.big_model --gigabytes GB --methods METHOD --write`."])


def token_loops_table() -> str:
    """What a token takes in transformers' own loop and in ours, from assets/token_loops.json."""
    path, command = ASSETS / "token_loops.json", "Command: `make token-loops`."
    if not path.exists():
        return f"Not measured yet. {command}"
    record = json.loads(path.read_text())
    head = "| model | loop | weights | a token, ms (20th to 80th percentile) | products and attention alone, ms | the rest, ms |"
    table = [f"{head} times as fast as transformers (95% within its run) | the rest, times as short |", "|" + "---|" * 8]
    for row in record["rows"]:
        token = f"{significant(row['ms'])} ({significant(row['p20'], row['ms'])} to {significant(row['p80'], row['ms'])})"
        ratios = ["" if row["loop"] == "transformers" else _times(row[name]) for name in ("times", "rest_times")]
        cells = [row["model"], row["loop"], row["weights"], token, significant(row["parts_ms"]), significant(row["rest_ms"], row["parts_ms"]), *ratios]
        table.append(f"| {' | '.join(cells)} |")
    busy = f" The machine was busy: {record['busy']}." if record["busy"] else ""
    told = f"One sequence after a context of {record['context']} tokens, all loops in turn in one process, {record['rounds']} rounds of {record['new']} tokens."
    told += " transformers' loop runs as `generate` does, without torch.compile, with torch's linear; of an architecture the weights are random."
    origin = f"{record['device']}, torch {record['torch']}, transformers {record['transformers']}, {record['date']}.{busy} {command}"
    return "\n".join([*table, "", f"{told} {origin}"])


def _times(found: list[float] | None) -> str:
    """A ratio with its interval; where the rest of a token is too short for the clock beside its products, that it is."""
    return "too short to tell" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def offloaded_gb(name: str) -> float:
    """GB of a GPU that an architecture is reckoned to need at 4 bits when it is offloaded; what a run is refused by."""
    model = presets()[name]
    inside = [one.outputs * one.inputs for one in model.matrices()]
    widest = max(one.inputs for one in model.matrices())
    outside = model.parameters - sum(one.parameters for one in model.matrices())
    return sizes.offloaded(sizes.Weight({"BF16": model.parameters}, max(inside), outside, model.vocabulary, widest), on_gpu=True) / 1e9


def machine_code_table() -> str:
    """Instructions a weight in the main loop of the weight-only kernel, compiled for Hopper without a GPU."""
    record = [r for r in json.loads((ASSETS / "machine_code.json").read_text()) if r["capability"] == 90 and r.get("per_weight")]
    rows = ["| format and rows | instructions a weight | registers |", "|---|---|---|"]
    rows += [f"| {r['variant'].removeprefix('sm_90 ')} | {r['per_weight']:.2f} | {r['registers']} |" for r in record]
    return "\n".join([*rows, "", "Command: `make machine-code`."])


def soak_table() -> str:
    """What the service was put through, from assets/soak.json."""
    path = ASSETS / "soak.json"
    outcomes = json.loads(path.read_text()) if path.exists() else {}
    rows = ["| proof | found | seconds | date, load before |", "|---|---|---|---|"]
    hidden = ("seconds", "date", "load_before", "commit", "cores")
    for name, outcome in outcomes.items():
        found = ", ".join(f"{key.replace('_', ' ')} {_said(value)}" for key, value in outcome.items() if key not in hidden and value != [])
        rows.append(f"| {name.replace('_', ' ')} | {found} | {outcome['seconds']} | {outcome['date']}, {outcome['load_before']} on {outcome['cores']} cores |")
    return "\n".join([*rows, "", "Command: `make soak`."]) if outcomes else "Not measured yet. Command: `make soak`."


def _said(value: object) -> str:
    return "; ".join(f"{key.replace('_', ' ')} {_said(item)}" for key, item in value.items()) if isinstance(value, dict) else str(value)
