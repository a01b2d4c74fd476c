"""`python -m kernels`: checks every op against float64 on its cases, then times it. Exit code 1 on a failed check."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from kernels.bench.check import check
from kernels.timing import device_name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--check", action="store_true", help="check only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    checks = list(check(device))
    if args.json:
        print(json.dumps({"device": device_name(device), "torch": torch.__version__, "checks": checks}, indent=1))
    return 0 if all(row["ok"] for row in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
