"""Regenerates the generated parts of README.md and docs/ and the catalogue of methods: `python -m explorer.docs`; `--check` fails when they are stale."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from explorer.findings import busy, doubts, known, one_rate
from explorer.methods import catalogue as methods_catalogue
from explorer.methods import fields_of, methods
from explorer.recorded import seeds, survey
from explorer.recordings import large_table, machine_code_table, quantizer_peers_table, soak_table, token_loops_table
from explorer.records import Report, change, fitting, significant
from explorer.repeats import between, spread, work
from explorer.speeds import gain, share

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHOWN_SHAPE = (4096, 4096)  # N, K of the kernels' tables
WIDTH = 160  # columns of a line of text; tables have no other way than long lines
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
    held = "In memory: codes in the width that the kernel reads, its scales and zeros. Embedding, norms and head stay in 16 bits."
    held += " Tokens/s of two rows are of different minutes. The speed-up is over a 16-bit loop that ran in turn with the row's own, and compares:"
    held += f" another run of the same work lies within a factor of {between():.2f} of their mean. % of limit: what reading its bytes takes of a token's time."
    rows += [
        "",
        held,
        "",
        f"Measured on {p['device']}, torch {p['torch']}, {p['date']}; {p['text']}; ± is half of a 95% interval.{_noise(reports)} Command: `make seeds`.",
    ]
    return "\n".join(rows)


def survey_table() -> str:
    """Every method with its default parameters, and more, by whole stored bits and, among those, by divergence."""
    reports = list(survey().values())
    head = "| configuration | bits/weight, stored | bits/weight in memory | change in perplexity, % | KL divergence, nats | same top token, % |"
    rows = [head + " speed-up over 16 bits (95% within its run) | quantizing, s | kernel |", "|" + "---|" * 9]
    for r in sorted(reports, key=lambda r: (-int(r.value("bits_per_weight")), r.value("kld_mean"))):
        cells = [r.name, f"{r.value('bits_per_weight'):.3f}", f"{r.value('bits_per_weight_resident'):.3f}"]
        cells += [_interval(r, "perplexity_delta", 2), _interval(r, "kld_mean")]
        cells += [f"{r.value('top1_agreement'):.1f}", _ratio(r)]
        cells += [f"{r.value('quantize_seconds'):.1f}", r.provenance["kernel_summary"].split(" on ")[0]]
        rows.append("| " + " | ".join(cells) + " |")
    p = reports[0].provenance
    order = "Most whole stored bits first (4.00 to 4.99 are one class), within a class the least divergence first. Speed-ups: both loops in turn, in one run; "
    order += "they are of the bits in memory, which a token reads: kernels hold codes in widths of their own."
    apart = spread((work(r), r.value("decode_speedup")) for r in reports if r.find("decode_speedup"))
    order += f" {apart.told()}" if apart else ""
    origin = f"Measured on {p['device']}, torch {p['torch']}, {p['date']}; {p['text']}; ± is half of a 95% interval.{_noise(reports)}"
    later = [r for r in reports if r.provenance["device"] != p["device"]]
    if later:
        origin += f" Measured again on {later[0].provenance['device']}, {later[0].provenance['date']}: {', '.join(r.name for r in later)}."
    origin += " Command: `make survey`."
    return "\n".join([*rows, "", order, "", origin])


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


def benches() -> Iterator[tuple[dict, list[int], dict[tuple[str, str, str], dict[int, dict]]]]:
    """What `python -m kernels --write` left in assets/bench: each device's record, its numbers of rows, and (op, kernel, format) -> rows -> timing, of one
    shape.
    """
    for path in sorted((ROOT / "assets" / "bench").glob("*.json")):
        record = json.loads(path.read_text())
        timed = [r for r in record["timings"] if (r["case"].get("n"), r["case"].get("k")) == SHOWN_SHAPE and r["case"].get("m")]
        lines: dict[tuple[str, str, str], dict[int, dict]] = {}
        for r in timed:
            lines.setdefault((r["op"], r["form"], r["format"]), {})[r["case"]["m"]] = r
        yield record, sorted({r["case"]["m"] for r in timed}), lines


def origin(record: dict) -> str:
    """Where and when the kernels were timed, and by which command."""
    busy = f" The machine was busy: {record['busy']}." if record.get("busy") else ""
    return f"{record['device']}, torch {record['torch']}, {record['date']}.{busy} {commands(record['command'])}"


def commands(joined: str) -> str:
    """The commands of a record, which were written one after the other into it, as a sentence."""
    each = [f"`{command}`" for command in joined.split("; ")]
    return f"Command{'s' if each[1:] else ''}: {', then '.join(each)}."


def counted(rows: list[int]) -> str:
    """Cells of a head: so many rows of inputs."""
    return " | ".join("1 row" if m == 1 else f"{m} rows" for m in rows)


def kernels_table() -> str:
    """All formats, one table a device, a line a format; the other shapes are in the Speed tab."""
    parts = []
    for record, counts, lines in benches():
        rows = [f"| operation | kernel | format | {counted(counts)} | times as fast as torch's 16 bits | torch's operator takes, times as long |"]
        rows.append("|" + "---|" * (5 + len(counts)))
        for names, cells in lines.items():
            own = [f"{cells[m]['us']:,.0f} us, {cells[m]['ratio']:.2f} x" if m in cells else "" for m in counts]
            rows.append(f"| {' | '.join([*names, *own, beside_torch(cells, counts), torch_takes(cells, counts)])} |")
        what = f"Median time and how many times as fast as 16 bits ({beside(lines)}), {SHOWN_SHAPE[0]} x {SHOWN_SHAPE[1]}; a copy moves "
        what += f"{record['copy_gb_per_s']:.1f} GB/s."
        rows += ["", f"{what} {origin(record)}{peers(record)}"]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) or "No kernel has been timed yet."


def kernels_short() -> str:
    """The first format of each operation, one table a device."""
    parts = []
    for record, counts, lines in benches():
        first = {op: (name, cells) for (op, _, name), cells in reversed(lines.items())}
        rows = [f"| operation | format | {counted(counts)} |", "|" + "---|" * (2 + len(counts))]
        for op, (name, cells) in sorted(first.items()):
            ratios = [f"{cells[m]['ratio']:.2f}" if m in cells else "" for m in counts]
            rows.append(f"| {' | '.join([op, name, *ratios])} |")
        what = f"How many times as fast as 16 bits ({beside(lines)}), weights of {SHOWN_SHAPE[0]} x {SHOWN_SHAPE[1]}."
        parts.append("\n".join([*rows, "", f"{what} {origin(record)}"]))
    return "\n\n".join(parts) or "No kernel has been timed yet."


def beside(lines: Mapping[tuple[str, str, str], Mapping[int, dict]]) -> str:
    """Which products in 16 bits the kernels of a table were timed beside. "bf16 linear" is torch's."""
    names = dict.fromkeys(cell["baseline"] for cells in lines.values() for cell in cells.values())
    return ", ".join("torch's linear" if name == "bf16 linear" else name.replace("bf16", "bfloat16") for name in names)


def beside_torch(cells: Mapping[int, dict], counts: list[int]) -> str:
    """How many times as fast as torch's linear in bfloat16, fastest or not, for each number of rows; "" where a file of before does not say."""
    linear = "bf16 linear"
    found = [cell.get("baselines", {linear: cell} if cell["baseline"] == linear else {}).get(linear) for cell in (cells.get(m) for m in counts) if cell]
    return ", ".join("" if way is None else f"{way['ratio']:.2f}" for way in found) if any(found) else ""


def torch_takes(cells: Mapping[int, dict], counts: list[int]) -> str:
    """How many times longer torch's own CPU operator takes on the same numbers, for each number of rows; "" where `--peers` timed none."""
    found = [cells.get(m, {}).get("peers", {}).get("torch CPU operator", {}).get("ratio") for m in counts]
    return ", ".join("" if ratio is None else f"{ratio:.2f}" for ratio in found) if any(found) else ""


def peers(record: dict) -> str:
    """Where `python -m kernels --peers --write` timed it: how many times longer llama.cpp's whole token takes beside our products alone; else ""."""
    rows = [f"{row['ratio']:.2f} times as long ({row['blocks']})" for row in record.get("tokens", []) if "ratio" in row]
    return f" llama.cpp's whole token, beside our products alone in the same groups of 32, takes {', '.join(rows)}." if rows else ""


def summation() -> str:
    """How far the order of sums alone moves calibrated methods, from assets/summation.json."""
    path = ROOT / "assets" / "summation.json"
    if not path.exists():
        return "Not measured yet. Command: `make summation`."
    record = json.loads(path.read_text())
    rows = [f"{r['name']} {', '.join(map(significant, r['klds']))} nats, {100 * (max(r['klds']) / min(r['klds']) - 1):.1f}% apart" for r in record["rows"]]
    what = f"KL divergence with {', '.join(map(str, record['batches']))} windows of calibration text a forward pass, all else equal: {'; '.join(rows)}."
    return f"{what} {record['device']}, torch {record['torch']}, {record['date']}. Command: `make summation`."


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": results_table, "methods": methods_table, "kernels-short": kernels_short, "model": model_facts},
    "docs/RESULTS.md": {
        "survey": survey_table,
        "quantizer-peers": quantizer_peers_table,
        "token-loops": token_loops_table,
        "timings": timings_table,
        "large": large_table,
        "summation": summation,
    },
    "docs/KERNELS.md": {"kernels": kernels_table, "machine-code": machine_code_table},
    "docs/SERVING.md": {"soak": soak_table},
}


def laid(text: str) -> str:
    """A part as it stands in a page: lines of its text are broken at WIDTH, never inside `code`; those of tables stay."""
    lines = []
    for line in text.splitlines():
        whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
        lines += [line] if line.startswith("|") else textwrap.wrap(whole, WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(lines).replace("\0", " ")


def render(text: str, parts: Mapping[str, Callable[[], str]], page: str = "the page") -> str:
    """A page's text with its generated parts renewed. A part stands between `<!-- name -->` and `<!-- /name -->`. Ends the program where one is missing."""
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no part {name!r}")
        text = pattern.sub(lambda match, make=make: match[1] + laid(make()) + match[2], text)
    return text


def catalogue() -> str:
    """The methods and their fields as the page reads them, so that it need not import torch to be served."""
    return json.dumps({"methods": methods_catalogue()}, indent=1) + "\n"


def main() -> int:
    fresh = {ROOT / page: render((ROOT / page).read_text(), parts, page) for page, parts in PARTS.items()} | {CATALOGUE: catalogue()}
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
