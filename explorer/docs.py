"""Regenerates the generated parts of README.md and the catalogue of methods: `python -m explorer.docs`; `--check` fails when they are stale."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from explorer import sizes
from explorer.findings import busy, doubts, known, one_rate
from explorer.methods import catalogue as methods_catalogue
from explorer.methods import fields_of, methods
from explorer.presets import presets
from explorer.recorded import seeds, survey
from explorer.records import Report, change, fitting, significant
from explorer.repeats import between, spread, work
from explorer.speeds import gain, share

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHOWN_SHAPE = (4096, 4096)  # N, K of the kernels' table
CATALOGUE = ROOT / "assets" / "methods.json"


def methods_table() -> str:
    """One row a method, from its class."""
    rows = ["| method | what it is | parameters | source |", "|---|---|---|---|"]
    for method in methods().values():
        allowed = {f.name: ", ".join(map(str, f.choices)) or ("text" if f.low is None else f"{f.low:g} to {f.high:g}") for f in fields_of(method)}
        fields = "; ".join(f"`{name}` {values}" for name, values in allowed.items())
        rows.append(f"| `{method.name}` | {method.title} | {fields or 'none'} | {method.paper or 'none'} |")
    return "\n".join(rows)


def _interval(report: Report, metric: str, digits: int | None = None) -> str:
    """A metric with half its interval, with so many decimals, or with three significant digits; of a broken model with the digits that the interval leaves."""
    found = report.find(metric)
    if found is None:
        return ""
    half = (found.high - found.low) / 2 if found.low is not None and found.low != found.high else None
    delta = known(report, "perplexity_delta")
    if metric.startswith("perplexity") and delta and delta.value > 100 and half is not None:
        if metric == "perplexity_delta":
            return f"{change(found.value, found.low, found.high)[0]} ± {fitting(half / 100, half / 100)}"
        return f"{fitting(found.value, half)} ± {fitting(half, half)}"
    parts = [found.value] if half is None else [found.value, half]
    return " ± ".join(significant(part, found.value) if digits is None else f"{part:.{digits}f}" for part in parts)


def _ratio(report: Report) -> str:
    """A speed-up from low to high, or that other work disturbed it; "" where it was not measured."""
    found = gain(report)
    return "" if found is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}{', busy machine' if busy(report) else ''})"


def _rate(report: Report) -> str:
    """Tokens/s with their share of the limit, or that other work disturbed them."""
    part = f" ({value:.0f}% of limit)" if (value := share(report)) is not None else " (busy machine)" if doubts(report) else ""
    return f"{report.value('decode_tokens_per_second'):.0f}{part}"


def _noise(reports: list[Report]) -> str:
    """The noise floor of the divergence in words, "" where no report has it."""
    if not (one := next((r for r in reports if r.find("kld_floor")), None)):
        return ""
    return f" 16 bits themselves are {_interval(one, 'kld_floor')} nats from float32: below twice that a divergence is not told from rounding to bfloat16."


def results_table() -> str:
    """The seed results: what the page shows first."""
    reports = one_rate(seeds())
    head = "| configuration | bits/weight, stored | bits/weight in memory | perplexity | change, % (paired) | KL divergence, nats |"
    rows = [head + " same top token, % | all weights, MiB | decode, tokens/s | speed-up over 16 bits, interleaved (95% within its run) |", "|" + "---|" * 10]
    for r in reports:
        cells = [
            r.name,
            f"{r.value('bits_per_weight'):.3f}",
            f"{r.value('bits_per_weight_resident'):.3f}",
            _interval(r, "perplexity", 2),
            _interval(r, "perplexity_delta", 2),
            _interval(r, "kld_mean"),
            _interval(r, "top1_agreement", 1),
            f"{r.value('weight_bytes') / 2**20:.2f}",
        ]
        rows.append("| " + " | ".join([*cells, _rate(r), _ratio(r)]) + " |")
    p = reports[0].provenance
    held = "In memory: codes in the width that the kernel reads (3 bits take 4), its scales and zeros. Embedding, norms and head stay in 16 bits."
    held += " Tokens/s of two rows are of different minutes; the speed-up is over a 16-bit loop that ran in turn with the row's own, and compares;"
    held += f" another run of the same work lies within a factor of {between():.2f} of their mean. % of limit: what reading its bytes takes of a token's time."
    rows += [
        "",
        f"{held} Measured on {p['device']}, torch {p['torch']}, {p['date']}; {p['text']}; ± is half of a 95% interval.{_noise(reports)} Command: `make seeds`.",
    ]
    return "\n".join(rows)


def survey_table() -> str:
    """Every method with its default parameters, and more, by whole stored bits and, among those, by divergence."""
    reports = list(survey().values())
    head = "| configuration | bits/weight | change in perplexity, % | KL divergence, nats | same top token, % |"
    rows = [head + " speed-up over 16 bits (95% within its run) | quantizing, s | kernel |", "|" + "---|" * 8]
    for r in sorted(reports, key=lambda r: (-int(r.value("bits_per_weight")), r.value("kld_mean"))):
        cells = [r.name, f"{r.value('bits_per_weight'):.3f}", _interval(r, "perplexity_delta", 2), _interval(r, "kld_mean")]
        cells += [f"{r.value('top1_agreement'):.1f}", _ratio(r)]
        cells += [f"{r.value('quantize_seconds'):.1f}", r.provenance["kernel_summary"].split(" on ")[0]]
        rows.append("| " + " | ".join(cells) + " |")
    p = reports[0].provenance
    order = "Most whole stored bits first (4.00 to 4.99 are one class), within a class the least divergence first. Speed-ups: both loops in turn, in one run."
    apart = spread((work(r), r.value("decode_speedup")) for r in reports if r.find("decode_speedup"))
    order += f" {apart.told()}" if apart else ""
    origin = f"Measured on {p['device']}, torch {p['torch']}, {p['date']}; {p['text']}; ± is half of a 95% interval.{_noise(reports)}"
    later = [r for r in reports if r.provenance["device"] != p["device"]]
    if later:
        origin += f" Measured again on {later[0].provenance['device']}, {later[0].provenance['date']}: {', '.join(r.name for r in later)}."
    origin += " Command: `make survey`."
    return "\n".join([*rows, "", f"{order} {origin}"])


def model_facts() -> str:
    """The demo model in one line, from its training record."""
    record = json.loads((ROOT / "assets" / "demo-model" / "training.json").read_text())
    return (
        f"{record['parameters'] / 1e6:.1f} M parameters, {record['tokens_seen'] / 1e6:.1f} M tokens seen, held-out perplexity "
        f"{record['held_out_perplexity']}, {record['bits_per_byte']} bits per byte."
    )


def timings_table() -> str:
    """How long a person waits, from assets/timings.json."""
    record = json.loads((ROOT / "assets" / "timings.json").read_text())
    rows = ["| what | seconds |", "|---|---|", *(f"| {name} | {seconds:.2f} |" for name, seconds in record["seconds"].items())]
    return "\n".join(
        [*rows, "", f"The first visit loads {record['page_mb']:.1f} MB. Measured on {record['device']}, {record['date']}. Command: `make timings`."]
    )


def kernels_table() -> str:
    """The timings that `python -m kernels --write` left in assets/bench, one table a device, a line a format; the whole is in the Speed tab."""
    parts = []
    for path in sorted((ROOT / "assets" / "bench").glob("*.json")):
        record = json.loads(path.read_text())
        timed = [r for r in record["timings"] if r["case"].get("n") == SHOWN_SHAPE[0] and r["case"].get("k") == SHOWN_SHAPE[1] and r["case"].get("m")]
        counts = sorted({r["case"]["m"] for r in timed})
        lines: dict[tuple[str, str, str], dict[int, str]] = {}
        for r in timed:
            lines.setdefault((r["op"], r["form"], r["format"]), {})[r["case"]["m"]] = f"{r['us']:,.0f} us, {r['ratio']:.2f} x"
        titles = ["1 row" if m == 1 else f"{m} rows" for m in counts]
        rows = [f"| operation | kernel | format | {' | '.join(titles)} |", "|" + "---|" * (3 + len(counts))]
        rows += [f"| {' | '.join(names)} | {' | '.join(cells.get(m, '') for m in counts)} |" for names, cells in lines.items()]
        busy = f" The machine was busy: {record['busy']}." if record.get("busy") else ""
        what = f"Median time and how many times faster than 16 bits, {SHOWN_SHAPE[0]} x {SHOWN_SHAPE[1]}; a copy moves {record['copy_gb_per_s']:.1f} GB/s."
        rows += ["", f"{what} {record['device']}, torch {record['torch']}, {record['date']}.{busy} Command: `{record['command']}`.{peers(record)}"]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) or "No kernel has been timed yet."


def peers(record: dict) -> str:
    """Where `python -m kernels --peers --write` timed them: how many times longer torch's own operators take, and llama.cpp's whole token beside our
    products alone; else "".
    """
    found: dict[str, list[str]] = {}
    for r in record.get("timings", []):
        there = r.get("peers", {}).get("torch CPU operator", {})
        if "ratio" in there and (r["case"].get("n"), r["case"].get("k")) == SHOWN_SHAPE and r["form"] == "native":
            found.setdefault(r["format"], []).append(f"{there['ratio']:.2f}")
    told = [f"{name} {', '.join(times)}" for name, times in found.items()]
    said = f" torch's own CPU operators on the same numbers take so many times as long: {'; '.join(told)}." if told else ""
    rows = [f"{row['ratio']:.2f} times as long ({row['blocks']})" for row in record.get("tokens", []) if "ratio" in row]
    return said + (f" llama.cpp's whole token, beside our products alone in the same groups of 32, takes {', '.join(rows)}." if rows else "")


def quantizer_peers_table() -> str:
    """How long GPTQ, AWQ and HQQ take here and in public implementations, from assets/quantizer_peers.json."""
    record = json.loads((ROOT / "assets" / "quantizer_peers.json").read_text())
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
    path = ROOT / "assets" / "large.json"
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


def offloaded_gb(name: str) -> float:
    """GB of a GPU that an architecture is reckoned to need at 4 bits when it is offloaded; what a run is refused by."""
    model = presets()[name]
    inside = [one.outputs * one.inputs for one in model.matrices()]
    widest = max(one.inputs for one in model.matrices())
    outside = model.parameters - sum(one.parameters for one in model.matrices())
    return sizes.offloaded(sizes.Weight({"BF16": model.parameters}, max(inside), outside, model.vocabulary, widest), on_gpu=True) / 1e9


def machine_code_table() -> str:
    """Instructions a weight in the main loop of the weight-only kernel, compiled for Hopper without a GPU."""
    record = [r for r in json.loads((ROOT / "assets" / "machine_code.json").read_text()) if r["capability"] == 90 and r.get("per_weight")]
    rows = ["| format and rows | instructions a weight | registers |", "|---|---|---|"]
    rows += [f"| {r['variant'].removeprefix('sm_90 ')} | {r['per_weight']:.2f} | {r['registers']} |" for r in record]
    return "\n".join([*rows, "", "Command: `make machine-code`."])


def soak_table() -> str:
    """What the service was put through, from assets/soak.json."""
    path = ROOT / "assets" / "soak.json"
    outcomes = json.loads(path.read_text()) if path.exists() else {}
    rows = ["| proof | found | seconds | date, load before |", "|---|---|---|---|"]
    hidden = ("seconds", "date", "load_before", "commit", "cores")
    for name, outcome in outcomes.items():
        found = ", ".join(f"{key.replace('_', ' ')} {_said(value)}" for key, value in outcome.items() if key not in hidden and value != [])
        rows.append(f"| {name.replace('_', ' ')} | {found} | {outcome['seconds']} | {outcome['date']}, {outcome['load_before']} on {outcome['cores']} cores |")
    return "\n".join([*rows, "", "Command: `make soak`."]) if outcomes else "Not measured yet. Command: `make soak`."


def summation() -> str:
    """How far the order of sums alone moves calibrated methods, from assets/summation.json."""
    path = ROOT / "assets" / "summation.json"
    if not path.exists():
        return "Not measured yet. Command: `make summation`."
    record = json.loads(path.read_text())
    rows = [f"{r['name']} {', '.join(map(significant, r['klds']))} nats, {100 * (max(r['klds']) / min(r['klds']) - 1):.1f}% apart" for r in record["rows"]]
    what = f"KL divergence with {', '.join(map(str, record['batches']))} windows of calibration text a forward pass, all else equal: {'; '.join(rows)}."
    return f"{what} {record['device']}, torch {record['torch']}, {record['date']}. Command: `make summation`."


def _said(value: object) -> str:
    return "; ".join(f"{key.replace('_', ' ')} {_said(item)}" for key, item in value.items()) if isinstance(value, dict) else str(value)


PARTS = {
    "results": results_table,
    "timings": timings_table,
    "methods": methods_table,
    "survey": survey_table,
    "quantizer-peers": quantizer_peers_table,
    "kernels": kernels_table,
    "large": large_table,
    "machine-code": machine_code_table,
    "soak": soak_table,
    "summation": summation,
    "model": model_facts,
}


def render(text: str) -> str:
    """README text with every generated part renewed. A part stands between `<!-- name -->` and `<!-- /name -->`."""
    for name, make in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no part {name!r}")
        text = pattern.sub(lambda match, make=make: match[1] + make() + match[2], text)
    return text


def catalogue() -> str:
    """The methods and their fields as the page reads them, so that it need not import torch to be served."""
    return json.dumps({"methods": methods_catalogue()}, indent=1) + "\n"


def main() -> int:
    fresh = {README: render(README.read_text()), CATALOGUE: catalogue()}
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.name} is stale; run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(fresh[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
