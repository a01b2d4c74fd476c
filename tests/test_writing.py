"""What is written is there whole or not at all: checkpoints, traces, pages and tables on a disk that is full, which here is a limit on the size of files."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from explorer import saving
from explorer.__main__ import main
from explorer.loader import Loader
from explorer.records import InputError
from explorer.server import login
from explorer.tasks.checkpoint import zipped
from explorer.writing import MARK, UNFINISHED, NotWritten, cleared, whole, write
from tests.architectures import make
from tests.test_saving import prepared

ROOT = Path(__file__).parent.parent
ROOM = 200_000  # bytes: less than the weights, the tokenizer and a trace have


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """Writes fail once a file has that many bytes, in C++ and Rust too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("models") / "even", hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_key_value_heads=1)


@pytest.fixture(scope="module")
def made(folder: Path) -> saving.Prepared:
    return prepared(Loader(), folder, "rtn", {"bits": 4, "group_size": 32})


def left(place: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.mark.parametrize("form", ["compressed-tensors", "gguf"])
def test_a_checkpoint_that_does_not_fit_is_exit_code_3_and_leaves_nothing(form: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = [
        "save",
        "--model",
        str(folder),
        "--bits",
        "4",
        "--group-size",
        "32",
        "--no-measure",
        "--store",
        str(tmp_path.parent / "s.db"),
        "--as",
        form,
        "--to",
    ]
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new" / "in" / "new", tmp_path / "empty"):
        with files_of(ROOM):
            assert main([*asked, str(place)]) == 3
        said = capsys.readouterr().err.splitlines()[-1]
        why = "no room for all of it" if form == "gguf" else "File too large"
        assert said == f"{place} could not be written ({why}); free some space, or choose another place."
        assert left(tmp_path) == ["empty"], "not a part, and no folder that was not there"
    assert main([*asked, str(tmp_path / "empty")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert left(tmp_path / "empty") == sorted(told["files"]) and told["bytes"] > 1_000_000


@pytest.mark.parametrize("form", ["compressed-tensors", "gguf"])
def test_a_checkpoint_can_be_read_by_whom_the_umask_lets(form: str, made: saving.Prepared, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        told = saving.save(made, saving.formats()[form], tmp_path / "out", "card", {})
    finally:
        os.umask(before)
    assert {name: oct((tmp_path / "out" / name).stat().st_mode & 0o777) for name in told["files"]} == dict.fromkeys(told["files"], oct(0o640))


def test_the_tokenizers_words_are_understood_too(made: saving.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_write", lambda model, state, form, layers, rest, folder: folder.mkdir())
    with files_of(ROOM), pytest.raises(NotWritten, match=r"out could not be written \(File too large\)"):
        saving.save(made, saving.formats()["bfloat16"], tmp_path / "out", "card", {})
    assert not left(tmp_path)


def test_the_download_of_a_page_leaves_nothing_and_names_no_folder(made: saving.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.make_archive", lambda base, kind, root: Path(f"{base}.zip").write_bytes(bytes(2 * ROOM)))
    form = saving.choose(made)
    for most in (ROOM, 1_500_000):  # the checkpoint does not fit; it does, and a larger archive does not
        monkeypatch.setattr("shutil.make_archive", lambda base, kind, root: Path(f"{base}.zip").write_bytes(bytes(2_000_000)))
        with files_of(most), pytest.raises(InputError, match=r"^The server could not write the checkpoint; .* run: the command$") as caught:
            zipped(made, form, "card", {}, "the command")
        assert not left(tmp_path) and not isinstance(caught.value, NotWritten)


KILLED = """
import sys
from pathlib import Path
from explorer.writing import whole
with whole(Path(sys.argv[1])) as made:
    made.mkdir(exist_ok=True)
    (made / "model.safetensors").write_bytes(bytes(1000))
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_save_left_is_named_and_removed_and_nothing_else(there: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place, theirs = tmp_path / "model", tmp_path / f"{UNFINISHED}novel"
    home = place if there else tmp_path
    place.mkdir() if there else None
    (theirs / "chapter").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout.readline() == b"written\n"
        assert cleared(place) == [] and len(list(home.glob(f"{UNFINISHED}*/{MARK}"))) == 1, "it lives"
        writer.kill()
    [left_over] = home.glob(f"{UNFINISHED}*/{MARK}")
    if there:
        with pytest.raises(InputError, match=rf"model is not an empty folder \(it holds {UNFINISHED}.*\); name a new one"):
            saving.check(place)
    assert main(["save", "--method", "none", "--to", str(place), "--model", "no/such/model"]) == 2
    assert f"{left_over.parent} was left by an earlier command that was killed while it wrote, and is removed.\n" in capsys.readouterr().err
    assert left(tmp_path) == [theirs.name, f"{theirs.name}/chapter", *(["model"] if there else [])]


def test_what_somebody_else_made_meanwhile_stays(tmp_path: Path) -> None:
    for place in (tmp_path / "a" / "b", tmp_path / "c"):
        if place.name == "c":
            place.mkdir()
        with pytest.raises(NotWritten, match="File exists"), whole(place) as beside:
            beside.mkdir(parents=True, exist_ok=True)
            (beside / "one").write_text("ours")
            place.mkdir(parents=True, exist_ok=True)
            (place / "one").write_text("theirs")
        assert left(place) == ["one"] and (place / "one").read_text() == "theirs"
    assert left(tmp_path) == ["a", "a/b", "a/b/one", "c", "c/one"]


def test_places_that_cannot_be_are_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    name = "n" * 300
    for argv, sentence in (
        (["save", "--to", str(tmp_path / name)], f"{name} cannot be written (File name too long); name another place"),
        (["save", "--to", str(tmp_path / "nowhere")], "nowhere is not an empty folder"),
        (["run", "--html", str(tmp_path / name)], f"{name} cannot be written (File name too long); choose another place"),
        (["sweep", "--csv", str(tmp_path)], "cannot be written (Is a directory)"),
        (["sweep", "--csv", "-", "--json"], "--json and --csv - would both print on stdout; give --csv a file, or leave one of the two out."),
        (["profile", "--output", str(tmp_path)], "is there and no file"),
        (["profile", "--output", os.devnull], "is there and no file"),
        (["profile", "--output", str(tmp_path / name)], f"{name} cannot be written (File name too long)"),
    ):
        assert main([*argv, "--model", "no/such/model"]) == 2, argv
        assert sentence in (said := capsys.readouterr().err) and said.count("\n") == 1, said
    assert left(tmp_path) == ["nowhere"] and Path(os.devnull).is_char_device()


def test_a_page_or_table_that_does_not_fit_is_not_there_in_part(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    common = ["--model", str(tiny_folder), "--tokens", "256", "--length", "64", "--group-size", "32", "--store", str(tmp_path.parent / "r.db")]
    monkeypatch.setattr("explorer.commands.run.page_of", lambda reports: "x" * 5_000_000)
    monkeypatch.setattr("explorer.commands.sweep.table", lambda rows: "x" * 5_000_000)
    page, csv = tmp_path / "page.html", tmp_path / "rows.csv"
    with files_of(4_000_000):
        assert main(["run", *common, "--html", str(page)]) == 3
        assert f"{page} could not be written (File too large)" in capsys.readouterr().err.splitlines()[-1]
        assert main(["sweep", *common, "--methods", "rtn", "--bits", "4", "--csv", str(csv)]) == 3
        assert f"{csv} could not be written (File too large)" in capsys.readouterr().err.splitlines()[-1]
    assert not left(tmp_path)
    with pytest.raises(NotWritten, match="full could not be written"):
        write(Path("/dev/full"), "x")
    assert Path("/dev/full").is_char_device()
    page.write_text("an older one")
    page.chmod(0o400)
    write(page, "é")
    assert page.read_bytes() == "é".encode()


def test_a_trace_that_does_not_fit_is_said(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = ["profile", "--model", str(tiny_folder), "--method", "rtn", "--granularity", "channel", "--new", "2", "--context", "8", "--output"]
    old = tmp_path / "old.json"
    old.write_text("{}")
    for trace in (old, tmp_path / "new.json", tmp_path / "new.json.gz"):
        with files_of(20_000):
            assert main([*asked, str(trace)]) == 3
        out, err = capsys.readouterr()
        assert f"{trace} could not be written" in err.splitlines()[-1] and "wrote" not in out
        assert left(tmp_path) == ["old.json"] and old.read_text() == "{}"
    packed = tmp_path / "new.json.gz"
    assert main([*asked, str(packed)]) == 0 and json.loads(found := gzip.decompress(packed.read_bytes()))["traceEvents"]
    assert json.loads(found)["traceName"] == "new.json.gz", "and no folder that is no more"
    assert left(tmp_path) == ["new.json.gz", "old.json"]


def test_a_prompt_longer_than_a_window_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was cut without a word; and a model with a table of positions has none for a token beyond it."""
    learned = make("gpt2", tmp_path / "learned")
    for model, context, new, sentence in (
        ("demo", 513, 8, "one window of text, 512 tokens, and"), ("demo", 1025, 8, "a context of 1 to 1,024 tokens"),
        (str(learned), 500, 12, "shorter than the model's own length of 512; give a smaller --context or --new."),
    ):  # fmt: skip
        asked = ["--model", model, "--context", str(context), "--new", str(new), "--output", str(tmp_path / "t.json")]
        assert main(["profile", *asked]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "t.json").exists()
    assert main(["profile", "--granularity", "channel", *asked[:3], "510", "--new", "1", *asked[6:]]) == 0


def test_a_login_file_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    names = tmp_path / "names"
    monkeypatch.setattr("getpass.getpass", lambda prompt: "correct horse")
    for before, most in (("", 100), ("ada:" + login.hashed("battery staple") + "\n", 200)):
        names.write_text(before) if before else None
        with files_of(most):
            assert login.main([str(names), "eve"]) == 3 and "names could not be written (File too large)" in capsys.readouterr().err
        assert (names.read_text() if names.exists() else "") == before
    assert login.main([str(names), "eve"]) == 0 and login.read(names).keys() == {"ada", "eve"}
