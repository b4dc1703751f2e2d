"""Download published checkpoints: resumed, checked, and kept where fair-esm keeps them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from filelock import FileLock

from packedesm.errors import UserError, quote
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import (
    DIGESTS,
    MODELS,
    REGRESSION_SHA256,
    check_published,
    checkpoint_folder,
)
from packedesm.files import digests
from packedesm.progress import Progress

log = logging.getLogger(__name__)

BASE_URL = "https://dl.fbaipublicfiles.com/fair-esm"  # of the folders models and regression

BLOCK = 1 << 16  # what a dropped connection can lose: requests hands over whole blocks
ATTEMPTS = 6  # in a row without a new byte
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
SLOW_SECONDS, SLOW_BYTES = 60, 60_000  # a connection that brings less is given up
LOG_SECONDS = 10
_HEADROOM = 1.2  # over the encoder's weights in float32: the head, names and sizes
_REGRESSION_BYTES = 1_000_000  # the largest has 7,680 numbers


def fetch(name: str, folder: str | Path = "auto", base_url: str = BASE_URL) -> Path:
    """Download a published model into `folder`, unless it is there and whole; return its path.

    Parameters
    ----------
    name
        One of the six published ESM-2 models.
    folder
        Receives NAME.pt and NAME-contact-regression.pt; while one is under way, it has ``.part``
        after its name, from which a later call goes on. ``auto`` is `checkpoint_folder`.

    Raises
    ------
    UserError
        If the name is unknown, the server does not have it, the connection keeps failing, or
        what arrives, or is there, does not have the published digest.
    """
    path = _path(name, folder)
    most = int(MODELS[name].parameters * 4 * _HEADROOM)
    _fetch(f"{base_url}/models/{path.name}", path, DIGESTS[name], most=most)
    return path


def fetch_regression(name: str, folder: str | Path = "auto", base_url: str = BASE_URL) -> Path:
    """Download the regression of a published model's contact head, as `fetch` does the model.

    Raises
    ------
    UserError
        As `fetch`, also if what arrives, or is there, is no regression for this model.
    """
    path = regression_file(_path(name, folder))
    published = {"sha256": REGRESSION_SHA256[name]} if name in REGRESSION_SHA256 else {}

    def check(file: Path) -> None:
        if not published:
            from packedesm.esm2.head_weights import read_regression  # here: it takes torch

            read_regression(file, MODELS[name])

    url = f"{base_url}/regression/{path.name}"
    _fetch(url, path, published, most=_REGRESSION_BYTES, check=check)
    return path


def _path(name: str, folder: str | Path) -> Path:
    if name not in DIGESTS:
        raise UserError(f"{name!r} is not a published model; choose {', '.join(DIGESTS)}")
    return checkpoint_folder(folder) / f"{name}.pt"


def _fetch(
    url: str,
    path: Path,
    published: Mapping[str, str],
    *,
    most: int,
    check: Callable[[Path], None] = lambda _file: None,
) -> None:
    """Download one file, unless it is there and whole."""
    if path.exists():  # before a lock: the folder may be one that only others may write to
        advice = "delete it, then this command fetches it again"
        check_published(path, digests(path, published), published, advice)
        check(path)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A second job waits here, and then finds the file.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                download(url, path, published, most=most, check=check)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def download(
    url: str,
    path: Path,
    expected: Mapping[str, str],
    *,
    most: int,
    pause: float = 1.0,
    check: Callable[[Path], None] = lambda _file: None,
) -> None:
    """Download `url` to `path`, which appears only when it is complete and checked.

    Parameters
    ----------
    expected
        Hexadecimal digests by the name of their algorithm.
    most
        Bytes that the file has at most; a server that sends more is not believed.
    pause
        Seconds before the first new attempt after a dropped connection; doubled each time.
    check
        Raises UserError of a file with other content than it should have.

    Raises
    ------
    UserError
        As `fetch`.
    """
    part = path.with_name(f"{path.name}.part")
    _complete(url, part, path, most, pause)
    try:
        advice = f"it was removed, try again or place a good copy at {path}"
        check_published(url, digests(part, expected), expected, advice)
        check(part)
    except UserError:
        part.unlink()
        raise
    part.replace(path)
    log.info("%s: downloaded and checked", path)


class _Dropped(Exception):
    """The connection ended before the file did."""


class _Crawled(_Dropped):
    """The connection brings bytes, but so few that the file would not be whole for days."""


def _complete(url: str, part: Path, path: Path, most: int, pause: float) -> None:
    """Append to `part` until the server has no more, trying again as long as bytes arrive."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _transfer(url, part, most)
        except _Dropped as error:
            helped = _size(part) > furthest and not isinstance(error, _Crawled)
            failures = 0 if helped else failures + 1
            furthest = max(furthest, _size(part))
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}; try again to go on from what arrived, "
                    f"or place the file at {path}"
                ) from error
            wait = pause * 2**failures
            log.warning("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(wait)


def _transfer(url: str, part: Path, most: int) -> None:
    """Make one request for what `part` lacks, and append it."""
    have = _size(part)
    # `identity`: a compressed answer would make byte ranges and Content-Length those of another
    # stream.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                if answer.headers.get("Content-Range") != f"bytes */{have}":
                    part.unlink()  # not the beginning of this file
                    raise _Dropped("what had arrived before is longer than the file")
                return
            _check_status(url, answer)
            # A server that ignores Range sends the file from its beginning.
            start = _first_byte(answer, have)
            total = _total(answer, start)
            if (total or 0) > most:
                raise UserError(
                    f"{url}: the server announces {total:,} bytes, the model has at most {most:,}; "
                    "check the address and the proxy"
                )
            with part.open("ab" if start else "wb") as handle:
                _copy(answer, handle, part.stem, start, total, most)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Dropped(f"broke off after {_size(part)} bytes ({_reason(error)})") from error
    # urllib3 before 2 takes a body that ends too early for a whole one.
    if total is not None and _size(part) != total:
        raise _Dropped(f"broke off after {_size(part)} of {total} bytes")


def _first_byte(answer: requests.Response, have: int) -> int:
    """Return where in the file an answer begins, which is where `have` bytes end, or 0."""
    if answer.status_code != requests.codes.partial_content:
        return 0
    said = answer.headers.get("Content-Range", "")
    if not said.startswith(f"bytes {have}-"):
        raise _Dropped(f"the server sent another part than was asked for ({quote(said)})")
    return have


def _total(answer: requests.Response, start: int) -> int | None:
    """Return how many bytes the file has, if the server tells."""
    length = answer.headers.get("Content-Length")
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal()):
        raise _Dropped(f"the server sent a length that is none ({quote(length)})")
    return start + int(length)


def _check_status(url: str, answer: requests.Response) -> None:
    code = answer.status_code
    if code >= 500 or code == requests.codes.too_many_requests:
        raise _Dropped(f"the server answered {code} {answer.reason}")
    if code not in (requests.codes.ok, requests.codes.partial_content):
        raise UserError(
            f"{url}: the server answered {code} {answer.reason}; check the address and the proxy"
        )


def _copy(
    answer: requests.Response,
    handle: BinaryIO,
    name: str,
    start: int,
    total: int | None,
    most: int,
) -> None:
    """Write the body of `answer`, and tell how far it is; give up where it crawls or never ends."""
    doing = f"downloading {name}"
    begun, since = time.monotonic(), 0
    with Progress(doing, total, "bytes", interval=LOG_SECONDS, before=start) as progress:
        # What has come, not a block of it: that could take days to fill.
        while block := answer.raw.read1(BLOCK):
            handle.write(block)
            progress.add(len(block))
            start, since = start + len(block), since + len(block)
            if start > most:
                raise UserError(f"{name}: the server sends more than {most:,} bytes")
            if time.monotonic() - begun > SLOW_SECONDS:
                if since < SLOW_BYTES:
                    raise _Crawled(f"fewer than {SLOW_BYTES:,} bytes came in {SLOW_SECONDS} s")
                begun, since = time.monotonic(), 0


def _reason(error: Exception) -> str:
    """Return the innermost cause in one line: requests wraps the one that tells."""
    innermost: BaseException = error
    while cause := innermost.__cause__ or innermost.__context__:
        innermost = cause
    return " ".join(str(innermost).split()) or type(innermost).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
