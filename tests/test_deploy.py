"""The files of deploy/: what they name exists, is mounted, and is what the app reads."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

import app

ROOT = Path(__file__).parent.parent
UNIT = (ROOT / "deploy" / "quantization-explorer.service").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def mounts(service: str) -> dict[str, tuple[str, bool]]:
    """{folder in the container: (volume or path, whether it is read-only)}."""
    parts = [entry.split(":") for entry in COMPOSE["services"][service]["volumes"]]
    return {target: (source, mode == ["ro"]) for source, target, *mode in parts}


def variables(text: str) -> set[str]:
    return set(re.findall(r"\b(?:QUANTIZATION_EXPLORER|GRADIO_SERVER)_[A-Z_]+", text))


def test_the_login_file_of_the_containers_is_made_by_one_and_read_by_the_other() -> None:
    """In a volume that the image owns: a file of the host would belong to another user."""
    app_, login = COMPOSE["services"]["app"], COMPOSE["services"]["login"]
    path = re.fullmatch(r"\$\{LOGIN:\+(.+)\}", app_["environment"]["QUANTIZATION_EXPLORER_AUTH_FILE"])[1]
    folder = str(Path(path).parent)
    assert mounts("app")[folder] == ("names", True) and mounts("login")[folder] == ("names", False) and login["entrypoint"][-1] == path
    assert folder in (ROOT / "Dockerfile").read_text(), "a volume takes its owner from the folder in the image"
    assert login["profiles"], "it is no part of `up`"
    named = {source for service in COMPOSE["services"] for source, _ in mounts(service).values()}
    assert {name for name in named if not name.startswith(".")} == COMPOSE["volumes"].keys()
    assert all((ROOT / "deploy" / name).exists() for name in named if name.startswith("."))


def test_temporary_files_of_the_container_are_on_its_disk_and_gone_at_the_next_start(tmp_path: Path) -> None:
    """What does not fit into memory must not go to a file in memory."""
    service = COMPOSE["services"]["app"]
    place = service["environment"]["TMPDIR"]
    assert any(place.startswith(f"{folder}/") for folder in mounts("app")) and not any(place.startswith(memory) for memory in service["tmpfs"])
    shell, option, line = service["command"]
    (tmp_path / "tmp" / "gradio").mkdir(parents=True)
    (tmp_path / "app.py").write_text("import pathlib, tempfile; print(tempfile.gettempdir(), list(pathlib.Path(tempfile.gettempdir()).iterdir()))")
    given = {"TMPDIR": str(tmp_path / "tmp"), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    started = subprocess.run([shell, option, line.replace("$$", "$")], cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
    assert started.stdout == f"{tmp_path / 'tmp'} []\n"


def test_without_a_login_the_variable_is_empty_and_the_app_asks_for_none() -> None:
    assert app.settings([], {"QUANTIZATION_EXPLORER_AUTH_FILE": ""}).auth_file is None
    assert app.settings([], {"QUANTIZATION_EXPLORER_AUTH_FILE": "names.txt"}).auth_file == Path("names.txt")


def test_the_unit_writes_only_where_systemd_lets_it_and_its_command_is_one() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(UNIT)
    service = unit["Service"]
    interpreter, script, *argv = shlex.split(service["ExecStart"])[1:]
    assert not Path(interpreter).is_absolute() and (ROOT / script).exists()
    made = app.settings(argv, {})
    assert made.public and (made.name, made.port) == ("127.0.0.1", 7860)
    given = dict(part.split("=", 1) for line in UNIT.splitlines() if line.startswith("Environment=") for part in line.partition("=")[2].split())
    assert given["QUANTIZATION_EXPLORER_AUTH_FILE"] == f"%d/{service['LoadCredential'].partition(':')[0]}"
    kept = {f"%C/{service['CacheDirectory']}", f"%S/{service['StateDirectory']}"}
    assert given.pop("TMPDIR") == "/var/tmp" and service["PrivateTmp"] == "yes", "on the disk, a folder of its own"
    assert all(value.startswith((*kept, "%d/")) for value in given.values()) and {"HOME", "TRITON_CACHE_DIR"} <= given.keys()
    assert service["RestartPreventExitStatus"] == "2" and "/home/" not in UNIT
    assert UNIT.count("/srv/") == 1 and UNIT.count("LoadCredential=") == 1, "two lines are set"


def test_variables_that_are_named_are_read() -> None:
    code = "".join(path.read_text() for path in (ROOT / "app.py", *(ROOT / "explorer").rglob("*.py")))
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
    for path in ("deploy/compose.yaml", "deploy/quantization-explorer.service", "Dockerfile", "README.md", *pages):
        assert variables((ROOT / path).read_text()) <= variables(code), path


def test_an_image_holds_no_environment_and_no_leftovers() -> None:
    assert {".git", ".venv", "**/__pycache__", "**/*.db"} <= set((ROOT / ".dockerignore").read_text().split())
