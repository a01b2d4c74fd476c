"""A model hub as untrusted data: what a repository holds and weighs, asked before any weight is fetched; then those files, checked. No torch here."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from explorer import rights
from explorer.records import InputError
from explorer.sizes import Weight

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
INDEX = "model.safetensors.index.json"
SMALL_LIMIT, CONFIG_LIMIT, ANSWER_LIMIT, HEADER_LIMIT = 64 * 2**20, 10**6, 8 * 2**20, 32 * 2**20
ELSE = "or choose 'demo' or a local folder"
HOME = Path.home() / ".cache" / "quantization-explorer" / "models"


@dataclass(frozen=True)
class HubSettings:
    """Where the hub is and what may be taken from it. timeout: seconds without a byte; deadline: seconds of one download; sizes in bytes.

    cache holds what was fetched, at most cache_bytes, the least recently used leaves first. shared: a cache of the hub's own client, read
    only. token: whose rights are used where a visitor has none of their own (rights.py). login: whether visitors can log in here.
    remember: seconds that an answer, good or bad, is not asked for again. folders: below which a visitor may name a folder; None: anywhere.
    """

    endpoint: str = "https://huggingface.co"
    cache: Path = HOME
    cache_bytes: int = 60 * 10**9
    shared: Path | None = Path.home() / ".cache" / "huggingface" / "hub"
    offline: bool = False
    timeout: float = 10.0
    deadline: float = 3600.0
    token: str = field(default="", repr=False)
    login: bool = False
    remember: float = 600.0
    folders: tuple[Path, ...] | None = None


def settings_from(environment: Mapping[str, str]) -> HubSettings:
    """The settings that the composition roots use, from the variables that the hub's own client knows. No token: that is given on purpose."""
    home = Path(environment.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return HubSettings(
        endpoint=environment.get("HF_ENDPOINT", HubSettings.endpoint).rstrip("/"),
        cache=Path(environment.get("QUANTIZATION_EXPLORER_MODELS", HOME)),
        shared=Path(environment.get("HF_HUB_CACHE", home / "hub")),
        offline=environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"),
    )


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it. sha256: of its content, "" where the hub does not say."""

    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the files that a load would fetch, and no others."""

    name: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of a download."""
        return sum(file.size for file in self.files)

    def weights(self) -> list[HubFile]:
        """The files that hold weights."""
        return [file for file in self.files if WEIGHTS.fullmatch(file.name)]


class _SameOrSecure(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https, or back to the hub's own address; drops the token on the way to another host."""

    def __init__(self, endpoint: str) -> None:
        self._home = urllib.parse.urlsplit(endpoint)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        target = urllib.parse.urlsplit(newurl)
        home = (target.scheme, target.netloc) == (self._home.scheme, self._home.netloc)
        if target.scheme != "https" and not home:
            raise urllib.error.URLError("a redirect to an address that is not secure")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and not home:
            request.remove_header("Authorization")
        return request


def split_id(name: str) -> tuple[str, str]:
    """(repository, revision) of "owner/name" or "owner/name@revision". Raises InputError with a sentence."""
    if not ID.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"{name[:60]!r} is neither a folder here nor a model id such as 'HuggingFaceTB/SmolLM2-135M'.")
    repository, _, revision = name.partition("@")
    return repository, revision or "main"


def refusal(name: str, error: Exception, settings: HubSettings) -> InputError:
    """What went wrong between us and the hub, as one sentence that says what to do."""
    if isinstance(error, urllib.error.HTTPError):
        told = str(error.headers.get("X-Error-Code", ""))
        if told == "GatedRepo" or error.code == 403:
            return gated(name, settings.login)
        if error.code in (401, 404, 410):
            what = "revision" if told == "RevisionNotFound" else "public model"
            return InputError(f"The hub knows no {what} {name!r}, or it is private. Check the id, {ELSE}.")
        if error.code == 429:
            wait = error.headers.get("Retry-After", "")
            return InputError(
                f"The hub answers no more requests from this address for now (429); try again in {wait if wait.isdecimal() else '300'} s, {ELSE}."
            )
        return InputError(f"The hub has a fault of its own ({error.code}); try again in a minute, {ELSE}.")
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return InputError(f"The hub is too slow: nothing came for {settings.timeout:g} s. Try again later, {ELSE}.")
    reason = str(getattr(error, "reason", error))[:120] or type(error).__name__
    return InputError(f"The hub cannot be reached for {name!r} ({reason}). Check the network, {ELSE}.")


def gated(name: str, login: bool = False) -> InputError:
    """The sentence for a repository whose owners choose who may read it."""
    then = "log in here with the same account, and run again" if login else "download it, and give the folder here"
    if rights.token():
        then = "wait until its owners let your account in, and run again"
    return InputError(f"The model {name!r} is gated: its owners ask who you are first. Accept its terms on the hub, {then}.")


@dataclass
class _Kept:
    """An answer of the hub and until when it holds, in seconds of the monotonic clock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0
    answer: Any = None


class Hub:
    """A hub, with its answers kept for a while: a class that types the same name asks once. Safe in several threads."""

    def __init__(self, settings: HubSettings | None = None) -> None:
        self.settings = settings or HubSettings()
        self._opener = urllib.request.build_opener(_SameOrSecure(self.settings.endpoint))
        self._lock = threading.Lock()
        self._kept: dict[tuple, _Kept] = {}

    def listing(self, name: str) -> Listing:
        """What `name`, "owner/name" or "owner/name@revision", holds at which commit. Raises InputError with a sentence."""
        repository, revision = split_id(name)
        listing = self._once(("listing", repository, revision), lambda: self._listing(repository, revision))
        return self._once(("listing", repository, listing.commit), lambda: listing)

    def config(self, listing: Listing) -> Any:
        """config.json of a repository, as data. Raises InputError with a sentence."""
        return self._once(("config", listing.name, listing.commit), lambda: json.loads(self.read(listing, "config.json", CONFIG_LIMIT)))

    def weigh(self, listing: Listing) -> Weight:
        """Parameters by dtype, from the headers of the weight files alone. Raises InputError with a sentence."""
        return self._once(("weight", listing.name, listing.commit), lambda: self._weigh(listing))

    def read(self, listing: Listing, file: str, limit: int, start: int = 0, length: int | None = None) -> bytes:
        """A file, or `length` bytes of it from `start`. Raises InputError when it is longer than `limit`, or does not come."""
        with self.open(listing, file, start, None if length is None else start + length - 1) as answer:
            skip = start if start and answer.status == 200 else 0  # a server that ignores ranges sends all of it
            content = answer.read(skip + (limit + 1 if length is None else length))[skip:]
        if len(content) > limit:
            raise InputError(f"{file} of {listing.name!r} is larger than {limit:,} bytes, which no real one is; choose another model.")
        return content

    def open(self, listing: Listing, file: str, start: int = 0, end: int | None = None) -> Any:
        """The open answer to a request for a file, from byte `start` to `end` inclusive. Raises InputError with a sentence."""
        ranged = {"Range": f"bytes={start}-{'' if end is None else end}"} if start or end is not None else {}
        return self._ask(listing.name, f"/{listing.name}/resolve/{listing.commit}/{file}", ranged)

    def _ask(self, name: str, path: str, headers: dict[str, str]) -> Any:
        if self.settings.offline:
            raise InputError(f"This server works offline and {name!r} is not in its cache; choose 'demo' or a local folder.")
        token = rights.token() or self.settings.token
        key = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.settings.endpoint + path, headers={"User-Agent": "quantization-explorer", **key, **headers})
        try:
            return self._opener.open(request, timeout=self.settings.timeout)
        except (OSError, ValueError, HTTPException) as error:  # URLError and HTTPError are OSErrors
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            raise refusal(name, error, self.settings) from error

    def _once(self, key: tuple, ask: Callable[[], Any]) -> Any:
        """The answer to a question, good or bad, asked at most once in a while."""
        with self._lock:
            key = (*key, rights.owner(rights.token()))
            while len(self._kept) > 1000:
                self._kept.pop(next(iter(self._kept)))
            kept = self._kept.setdefault(key, _Kept())
        with kept.lock:  # one asks, the others wait for its answer
            if time.monotonic() >= kept.until:
                kept.answer, seconds = self._answer(key[1], ask)
                kept.until = time.monotonic() + seconds
            answer = kept.answer
        if isinstance(answer, Exception):
            raise InputError(str(answer))
        return answer

    def _answer(self, name: str, ask: Callable[[], Any]) -> tuple[Any, float]:
        """(the answer or the InputError, seconds that it holds): what may be over in a moment is asked again soon."""
        long, soon = self.settings.remember, min(self.settings.remember, 15.0)
        try:
            return ask(), long
        except InputError as error:
            return error, long if "knows no" in str(error) or "gated" in str(error) else soon
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HTTPException) as error:
            return InputError(f"The hub's answer about {name!r} could not be read ({type(error).__name__}); try again in a minute, {ELSE}."), soon

    def _listing(self, name: str, revision: str) -> Listing:
        with self._ask(name, f"/api/models/{name}/revision/{revision}?blobs=true", {}) as answer:
            found = json.loads(answer.read(ANSWER_LIMIT))
        commit = found["sha"]
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError("a revision that is no commit")
        if found.get("gated") and not (rights.token() or self.settings.token):
            raise gated(name, self.settings.login)
        files = [HubFile(f["rfilename"], int(f["size"]), str((f.get("lfs") or {}).get("sha256", ""))) for f in found["siblings"] if "size" in f]
        listing = Listing(name, commit, tuple(wanted(name, files)))
        if found.get("gated") or found.get("private"):
            self.read(listing, "config.json", CONFIG_LIMIT)  # everyone may see the list; the files, which may be here already, only some
        return listing

    def _weigh(self, listing: Listing) -> Weight:
        found: list[tuple[str, str, list[int]]] = []
        for file in listing.weights():
            size = int.from_bytes(self.read(listing, file.name, 8, 0, 8), "little")
            if not 2 <= size <= min(HEADER_LIMIT, file.size - 8):
                raise _damaged(listing, file)
            try:
                header = json.loads(self.read(listing, file.name, size, 8, size))
                tensors = {key: value for key, value in header.items() if key != "__metadata__"}
                end = 8 + size + max((t["data_offsets"][1] for t in tensors.values()), default=0)
                found += [(key, tensor["dtype"], tensor["shape"]) for key, tensor in tensors.items()]
            except InputError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _damaged(listing, file) from error
            if end != file.size:
                raise _damaged(listing, file)
        return Weight.of(found)


def _damaged(listing: Listing, file: HubFile) -> InputError:
    return InputError(f"{file.name} of {listing.name!r} is damaged on the hub: its header does not fit its size. Choose another model.")


def wanted(name: str, files: list[HubFile]) -> list[HubFile]:
    """The files that a load needs: configuration, tokenizer, and one whole set of safetensors. Raises InputError when there is none."""
    named = {file.name: file for file in files}
    weights = sorted(n for n in named if WEIGHTS.fullmatch(n))
    if INDEX in named:
        weights = [n for n in weights if n != "model.safetensors"]
    elif "model.safetensors" in named:
        weights = ["model.safetensors"]
    if not weights:
        raise InputError(f"The model {name!r} has no weights as safetensors; other formats can run code and are not loaded. Choose another model.")
    if "config.json" not in named:
        raise InputError(f"The repository {name!r} has no config.json, so it is not a language model of the hub's kind. Choose another model.")
    small = [n for n in (*SMALL_FILES, *([INDEX] if len(weights) > 1 else [])) if n in named]
    if any(named[n].size > SMALL_LIMIT for n in small) or len(weights) > 256:
        raise InputError(f"The repository {name!r} has files of sizes that no language model has; choose another model.")
    return [named[n] for n in (*small, *weights)]
