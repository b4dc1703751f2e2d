"""Download published checkpoints: resumed, checked, and kept where fair-esm keeps them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import requests
from filelock import FileLock

from packedesm.errors import UserError
from packedesm.esm2.registry import DIGESTS, checkpoint_folder
from packedesm.files import digests
from packedesm.progress import Progress

log = logging.getLogger(__name__)

BASE_URL = "https://dl.fbaipublicfiles.com/fair-esm/models"

BLOCK = 1 << 16  # what a dropped connection can lose: requests hands over whole blocks
ATTEMPTS = 6  # in a row without a new byte
TIMEOUT = (10, 60)  # seconds to connect, and between two blocks
LOG_SECONDS = 10


def fetch(name: str, folder: str | Path = "auto", base_url: str = BASE_URL) -> Path:
    """Download the checkpoint of a published model into `folder`, unless it is there.

    Parameters
    ----------
    name
        One of the six published ESM-2 models.
    folder
        Receives NAME.pt; while it is under way, NAME.pt.part, from which a later call goes on.
        ``auto`` is `checkpoint_folder`.

    Raises
    ------
    UserError
        If the name is unknown, the server does not have it, the connection keeps failing, or
        what arrives does not have the published digest.
    """
    if name not in DIGESTS:
        raise UserError(f"{name!r} is not a published model; choose {', '.join(DIGESTS)}")
    path = checkpoint_folder(folder) / f"{name}.pt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A second job waits here, and then finds the file.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                download(f"{base_url}/{path.name}", path, DIGESTS[name])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def download(url: str, path: Path, expected: Mapping[str, str], *, pause: float = 1.0) -> None:
    """Download `url` to `path`, which appears only when it is complete and checked.

    Parameters
    ----------
    expected
        Hexadecimal digests by the name of their algorithm.
    pause
        Seconds before the first new attempt after a dropped connection; doubled each time.

    Raises
    ------
    UserError
        As `fetch`.
    """
    part = path.with_name(f"{path.name}.part")
    _complete(url, part, path, pause)
    found = digests([part], expected)
    for algorithm, digest in expected.items():
        if found[algorithm] != digest:
            part.unlink()
            raise UserError(
                f"{url}: {algorithm} of what was downloaded is {found[algorithm]}, expected "
                f"{digest}; it was removed, try again or place a good copy at {path}"
            )
    part.replace(path)
    log.info("%s: downloaded and checked", path)


class _Dropped(Exception):
    """The connection ended before the file did."""


def _complete(url: str, part: Path, path: Path, pause: float) -> None:
    """Append to `part` until the server has no more, trying again as long as bytes arrive."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            return _transfer(url, part)
        except _Dropped as error:
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}; try again to go on from what arrived, "
                    f"or place the file at {path}"
                ) from error
            wait = pause * 2**failures
            log.warning("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(wait)


def _transfer(url: str, part: Path) -> None:
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
            resumed = answer.status_code == requests.codes.partial_content
            # A server that ignores Range sends the file from its beginning.
            start = have if resumed else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            with part.open("ab" if resumed else "wb") as handle:
                _copy(answer, handle, part.stem, start, total)
    except requests.RequestException as error:
        raise _Dropped(f"broke off after {_size(part)} bytes ({_reason(error)})") from error
    # urllib3 before 2 takes a body that ends too early for a whole one.
    if total is not None and _size(part) != total:
        raise _Dropped(f"broke off after {_size(part)} of {total} bytes")


def _check_status(url: str, answer: requests.Response) -> None:
    code = answer.status_code
    if code >= 500 or code == requests.codes.too_many_requests:
        raise _Dropped(f"the server answered {code} {answer.reason}")
    if code not in (requests.codes.ok, requests.codes.partial_content):
        raise UserError(
            f"{url}: the server answered {code} {answer.reason}; check the address and the proxy"
        )


def _copy(
    answer: requests.Response, handle: BinaryIO, name: str, start: int, total: int | None
) -> None:
    """Write the body of `answer`, and tell how far it is."""
    doing = f"downloading {name}"
    with Progress(doing, total, "bytes", interval=LOG_SECONDS, before=start) as progress:
        for block in answer.iter_content(BLOCK):
            handle.write(block)
            progress.add(len(block))


def _reason(error: Exception) -> str:
    """Return the innermost cause in one line: requests wraps the one that tells."""
    innermost: BaseException = error
    while cause := innermost.__cause__ or innermost.__context__:
        innermost = cause
    return " ".join(str(innermost).split()) or type(innermost).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
