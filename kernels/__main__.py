"""`python -m kernels`: checks every op against float64 on its cases, then times it; `tune` searches tiles. Exit code 1 on a failed check, 2 on bad input."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from kernels import table
from kernels.bench import llama_cpp, tune
from kernels.bench.check import check
from kernels.bench.measure import format_of, measure
from kernels.bench.shapes import ROWS, SHAPES
from kernels.op import ops
from kernels.timing import busy, copy_bandwidth, device_name

BENCH = Path(__file__).parent.parent / "assets" / "bench"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__.splitlines()[0])
    parser.add_argument(
        "task",
        nargs="?",
        choices=("run", "tune"),
        default="run",
        help="run: check and time (the default); tune: search tiles on a GPU, on a CPU the rows from which weights are read out",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--check", action="store_true", help="check only")
    parser.add_argument("--every", type=int, default=1, help="check one case in so many, as under a sanitizer, where each takes long; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=20, help="timed rounds a shape")
    parser.add_argument("--shapes", default="common", help=f"names of shapes, separated by commas: {', '.join(SHAPES)}")
    parser.add_argument("--rows", default="", help="numbers of rows to time, separated by commas")
    parser.add_argument("--ops", default="", help=f"ops, separated by commas: {', '.join(ops())}")
    parser.add_argument("--format", action="append", default=[], help='a format as the table of timings names it, such as "4-bit g128"; may be repeated')
    parser.add_argument("--peers", action="store_true", help="time others' kernels too, where they can be imported")
    parser.add_argument("--write", action="store_true", help="write assets/bench/<device>.json, with how busy the machine was")
    parser.add_argument("--add", action="store_true", help="with --write: keep what that file says of other cases, if it was measured with the same versions")
    args = parser.parse_args(argv)
    for given, known, what in ((args.shapes, SHAPES, "shapes"), (args.ops, ops(), "op")):
        for name in filter(None, given.split(",")):
            if name not in known:
                parser.error(f"there are no {what} named {name}; there are {', '.join(known)}")
    formats = {format_of(case): None for op in ops().values() for case in op.timed}
    for name in args.format:
        if name not in formats:
            parser.error(f"no op is timed in the format {name}; there are {'; '.join(formats)}")
    if not all(part.isdigit() and int(part) > 0 for part in filter(None, args.rows.split(","))):
        parser.error(f"rows are positive numbers, not {args.rows}")
    if args.every < 1:
        parser.error("--every is a number from 1 on")
    if args.samples < 5:
        parser.error("a median with a spread takes at least 5 samples")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    device, names = torch.device(args.device), tuple(filter(None, args.ops.split(",")))
    shapes = list(dict.fromkeys(shape for name in args.shapes.split(",") for shape in SHAPES[name]))
    rows = [int(part) for part in args.rows.split(",") if part] or ROWS[args.device]
    command = "python -m kernels " + " ".join(sys.argv[1:] if argv is None else argv)
    if args.task == "tune":
        products = tune.tuned(device, shapes, rows, names=names, formats=tuple(args.format))
        found = itertools.chain(products, tune.others(device, names=names)) if args.device == "cuda" else tune.crossings(shapes)
        print(f"wrote {tune.write(device_name(device), _shown(found, show_tile, args.json), command)}", file=sys.stderr)
        return 0
    document = {"device": device_name(device), "command": command.strip(), "date": datetime.date.today().isoformat()} | versions()
    document["checks"] = list(_shown(check(device, names, args.every), show_check, args.json))
    if not args.check:
        document["busy"] = busy() if device.type == "cpu" else ""
        document["copy_gb_per_s"] = copy_bandwidth(device) / 1e9
        timed = measure(device, shapes, rows, args.samples, document["copy_gb_per_s"] * 1e9, args.peers, names, args.format)
        document["timings"] = []
        for row in _shown(timed, show_timing, args.json):
            document["timings"].append(row)
            if args.write:
                save(document, args.add)
        if args.peers and device.type == "cpu":
            document["tokens"] = list(_shown(llama_cpp.compare(), show_token, args.json))
    if document.get("busy"):
        print(f"The machine was busy ({document['busy']}): these timings are not the kernels' own.", file=sys.stderr)
    if args.write:
        save(document, args.add)
    if args.json:
        print(json.dumps(document, indent=1))
    return 0 if all(row["ok"] for row in document["checks"]) else 1


def save(document: dict[str, Any], add: bool) -> None:
    """Writes the device's file: after every row, because the time on a borrowed machine may end before the run does. add: to what is there."""
    BENCH.mkdir(parents=True, exist_ok=True)
    path = BENCH / table.file_name(document["device"])
    old = json.loads(path.read_text()) if add and path.is_file() else {}
    if old and all(old.get(name) == document[name] for name in ("torch", "triton", "cuda")):
        document = document | {name: joined(old.get(name, []), document.get(name, [])) for name in ("checks", "timings")}
        document["command"] = "; ".join(dict.fromkeys([*old["command"].split("; "), document["command"]]))
    path.write_text(json.dumps(document, indent=1) + "\n")


def joined(old: list[dict], new: list[dict]) -> list[dict]:
    """Rows of two runs, the new one's where both have the same."""
    rows = {json.dumps([row.get(name) for name in ("op", "format", "case", "dtype", "form" if "dtype" in row else "")]): row for row in [*old, *new]}
    return list(rows.values())


def versions() -> dict[str, Any]:
    """torch, triton and CUDA."""
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}


def _shown(rows, show, quiet: bool):
    for row in rows:
        if not quiet:
            print(show(row), flush=True)
        yield row


def show_check(r: dict) -> str:
    if "why" in r:
        return f"skip {r['op']:17s} {r['form']:18s} {r['why']}"
    mark = "ok  " if r["ok"] else "FAIL"
    return f"{mark} {r['op']:17s} {r['form']:18s} {r['dtype']:9s} {r['cases']:3d} cases, error {r['worst']:.1e} <= {r['limit']:.0e}"


def show_timing(r: dict) -> str:
    shape = " ".join(f"{name}={value}" for name, value in r["case"].items() if name in ("m", "n", "k", "batch", "heads", "tokens", "p", "q", "kind") and value)
    spread = f"({r['p20']:.0f} to {r['p80']:.0f})"
    line = f"{r['op']:17s} {r['form']:18s} {r['format']:34s} {shape:24s} {r['us']:9.1f} us {spread:16s}"
    line += f" {r['gb_per_s']:7.1f} GB/s {100 * r['of_copy']:4.0f}% of copy"
    peers = "".join(f", {p['ratio']:.2f}x {name}" for name, p in r["peers"].items() if "ratio" in p)
    ways = "".join(f", {way['ratio']:.2f}x {name}" for name, way in r["baselines"].items() if name != r["baseline"])
    return f"{line}, {r['ratio']:.2f}x {r['baseline']}{ways}{peers}"


def show_token(r: dict) -> str:
    if "why" in r:
        return f"{r['blocks']}: llama.cpp did not run: {r['why']}"
    return f"{r['blocks']}: 4-bit products of a token {r['us']:.0f} us, llama.cpp's token {r['llama_cpp_us']:.0f} us, {r['ratio']:.2f}x ours"


def show_tile(r: dict) -> str:
    return f"{r['key']:40s} {r['tile']} {r['us']:.1f} us, default {r['default_us']:.1f} us"


if __name__ == "__main__":
    sys.exit(main())
