"""Renews the pinned versions: `python -m assets.lock` upgrades this environment and writes what it holds to requirements*.txt and constraints.txt.

requirements*.txt name what the project imports (starlette, pydantic and brotli are gradio's), constraints.txt what those packages bring with them.
torch stays as it is pinned (its build decides which triton goes with it); run the gate before committing what this writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("requirements.txt", "requirements-test.txt")
FREE = {"torch", "triton", "pip", "setuptools", "wheel"}  # never pinned here
HEAD = "# What the packages in requirements*.txt bring with them, as the gate last passed; `make lock` renews it.\n"


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(line: str) -> str:
    """The package a line of a requirements file asks for; empty for a comment or an option."""
    found = re.match(r"[A-Za-z0-9][\w.-]*", line)
    return found[0] if found else ""


def pinned(line: str, versions: dict[str, tuple[str, str]]) -> str:
    """The line with the installed version, where the package is one to pin."""
    name = named(line)
    return line if not name or key(name) in FREE else f"{name}=={versions[key(name)][1]}"


def main() -> None:
    lines = {name: (ROOT / name).read_text().splitlines() for name in FILES}
    direct = {key(named(line)): line for rows in lines.values() for line in rows if named(line)}
    wanted = [line if name in FREE else named(line) for name, line in direct.items()]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager", *wanted], check=True)
    versions = {key(found.metadata["Name"]): (found.metadata["Name"], found.version) for found in distributions()}
    for name, rows in lines.items():
        (ROOT / name).write_text("".join(pinned(line, versions) + "\n" for line in rows))
    brought = [f"{name}=={version}\n" for at, (name, version) in sorted(versions.items()) if at not in direct and at not in FREE]
    (ROOT / "constraints.txt").write_text(HEAD + "".join(brought))


if __name__ == "__main__":
    main()
