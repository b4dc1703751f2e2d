"""Downloads from a real HTTP server on this machine that misbehaves on request."""

import hashlib
import http.server
import logging
import re
import threading
import time
from pathlib import Path

import pytest

from packedesm.cli import main
from packedesm.errors import UserError
from packedesm.esm2 import download as fetching
from packedesm.esm2.download import ATTEMPTS, BLOCK, download, fetch, fetch_regression
from packedesm.esm2.fair_esm import write_random_regression
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import DIGESTS, MODELS, REGRESSION_SHA256

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several blocks
EXPECTED = {
    "md5": hashlib.md5(CONTENT).hexdigest(),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve CONTENT as its server's attributes say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200:
            self.send_error(status)
            return
        start = 0
        if server.ranges and (asked := self.headers.get("Range")):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = server.files.get(self.path, server.content)[start:]
        self.send_response(206 if start else 200)
        for name, text in server.headers.items():
            self.send_header(name, text)
        if start and "Content-Range" not in server.headers:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        if "Content-Length" in server.headers:
            pass
        elif server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(server.drips):
            self.wfile.write(b"0")
            time.sleep(0.05)
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[:cut])
        if cut < len(body) or not server.tells_length:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content = CONTENT
    httpd.requests, httpd.statuses, httpd.cuts = [], [], []
    httpd.headers, httpd.files, httpd.drips = {}, {}, 0
    httpd.ranges = httpd.tells_length = True
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.pt"


def get(server, path, expected=EXPECTED):
    download(f"{server.url}/model.pt", path, expected, most=6_000_000, pause=0.001)


def assert_only_the_file(path):
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_arrives_whole(server, path):
    get(server, path)
    assert_only_the_file(path)
    assert server.requests == [("/model.pt", None)]


def test_a_dropped_connection_is_resumed_where_it_broke(server, path):
    server.cuts = [3_000_000, 1_000_000]
    get(server, path)
    assert_only_the_file(path)
    first, second = (int(asked[len("bytes=") : -1]) for _, asked in server.requests[1:])
    assert 3_000_000 - BLOCK < first <= 3_000_000
    assert first + 1_000_000 - BLOCK < second <= first + 1_000_000


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server, path):
    path.with_name("model.pt.part").write_bytes(CONTENT[:4_000_000])
    get(server, path)
    assert_only_the_file(path)
    assert server.requests == [("/model.pt", "bytes=4000000-")]


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_download_tells_how_far_it_is(server, path, caplog, tells_length):
    caplog.set_level(logging.INFO, "packedesm.progress")
    server.tells_length = tells_length
    path.with_name("model.pt.part").write_bytes(CONTENT[:4_000_000])
    get(server, path)
    of_total = f" of {len(CONTENT)} bytes (100.0%)" if tells_length else " bytes"
    assert caplog.messages[-1].startswith(f"downloading model.pt: {len(CONTENT)}{of_total}, ")


def test_a_complete_part_is_only_checked(server, path):
    path.with_name("model.pt.part").write_bytes(CONTENT)
    get(server, path)
    assert_only_the_file(path)


def test_a_part_longer_than_the_file_is_dropped(server, path):
    path.with_name("model.pt.part").write_bytes(CONTENT + b"more")
    get(server, path)
    assert_only_the_file(path)


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, path):
    server.ranges = False
    path.with_name("model.pt.part").write_bytes(b"x" * 4_000_000)
    get(server, path)
    assert_only_the_file(path)


def test_a_busy_server_is_asked_again(server, path):
    server.statuses = [503, 429, 500]
    get(server, path)
    assert_only_the_file(path)
    assert len(server.requests) == 4


def test_a_truncated_file_of_unknown_length_is_refused_and_removed(server, path):
    server.tells_length, server.cuts = False, [2_000_000]
    with pytest.raises(UserError, match=r"md5.*expected"):
        get(server, path)
    assert list(path.parent.iterdir()) == []


def test_a_corrupted_file_is_refused_and_removed(server, path):
    server.content = CONTENT[:100] + b"?" + CONTENT[101:]
    with pytest.raises(UserError) as caught:
        get(server, path)
    assert EXPECTED["md5"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_every_digest_is_checked(server, path):
    with pytest.raises(UserError, match="sha256"):
        get(server, path, EXPECTED | {"sha256": "0" * 64})
    assert list(path.parent.iterdir()) == []


def test_a_server_that_never_sends_a_byte_is_given_up_and_the_part_kept(server, path):
    server.cuts = [1_000_000] + [0] * ATTEMPTS
    with pytest.raises(UserError, match=r"broke off after 1000000 bytes.*model\.pt"):
        get(server, path)
    assert len(server.requests) == 1 + ATTEMPTS
    assert path.with_name("model.pt.part").read_bytes() == CONTENT[:1_000_000]
    assert not path.exists()


def test_a_missing_file_is_not_asked_for_again(server, path):
    server.statuses = [404] * 9
    with pytest.raises(UserError, match="404"):
        get(server, path)
    assert len(server.requests) == 1
    assert not path.exists()


def test_no_server_is_one_line(path, monkeypatch):
    monkeypatch.setattr(fetching, "ATTEMPTS", 2)
    with pytest.raises(UserError, match="refused") as caught:
        download("http://127.0.0.1:9/model.pt", path, EXPECTED, most=6_000_000, pause=0.001)
    assert "\n" not in str(caught.value)


# By name


NAME = "esm2_t6_8M_UR50D"


@pytest.fixture
def published(monkeypatch):
    """Let CONTENT be what was published under NAME."""
    monkeypatch.setitem(DIGESTS, NAME, EXPECTED)


def test_fetch_puts_a_model_under_its_name(server, tmp_path, published):
    path = fetch(NAME, tmp_path / "new" / "folder", server.url)
    assert path == tmp_path / "new" / "folder" / f"{NAME}.pt"
    assert path.read_bytes() == CONTENT
    assert server.requests == [(f"/models/{NAME}.pt", None)]


def test_fetch_of_a_file_that_is_there_asks_nobody(server, tmp_path, published):
    fetch(NAME, tmp_path, server.url)
    fetch(NAME, tmp_path, server.url)
    assert len(server.requests) == 1


REGRESSION = f"{NAME}-contact-regression.pt"


@pytest.fixture
def regression(tmp_path_factory) -> bytes:
    """The bytes of a regression for the model under NAME."""
    path = tmp_path_factory.mktemp("made") / "made.pt"
    write_random_regression(path, MODELS[NAME], seed=1)
    return path.read_bytes()


def test_fetch_puts_a_regression_beside_its_model(server, tmp_path, monkeypatch, regression):
    server.content = regression
    sha256 = hashlib.sha256(regression).hexdigest()
    monkeypatch.setitem(REGRESSION_SHA256, NAME, sha256)
    path = fetch_regression(NAME, tmp_path, server.url)
    assert path == tmp_path / REGRESSION == regression_file(tmp_path / f"{NAME}.pt")
    assert path.read_bytes() == regression
    assert server.requests == [(f"/regression/{REGRESSION}", None)]
    fetch_regression(NAME, tmp_path, server.url)  # it is there
    assert len(server.requests) == 1


def test_a_regression_that_is_not_the_published_one_is_refused(server, tmp_path, regression):
    server.content = regression
    with pytest.raises(UserError, match=REGRESSION_SHA256[NAME]):
        fetch_regression(NAME, tmp_path, server.url)
    assert not (tmp_path / REGRESSION).exists()


def test_where_no_digest_is_known_a_regression_is_known_by_what_it_holds(
    server, tmp_path, monkeypatch, regression
):
    monkeypatch.delitem(REGRESSION_SHA256, NAME)
    for content in (regression[:500], b"<html>", CONTENT[:1000]):
        server.content = content
        with pytest.raises(UserError, match=r"contact-regression\.pt\.part: not a checkpoint"):
            fetch_regression(NAME, tmp_path, server.url)
    server.content = regression
    other = "esm2_t12_35M_UR50D"  # which has twice as many maps
    with pytest.raises(UserError, match=r"shape \[1, 120\], expected \[1, 240\]"):
        fetch_regression(other, tmp_path, server.url)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".pt"]
    assert fetch_regression(NAME, tmp_path, server.url).read_bytes() == regression
    (tmp_path / REGRESSION).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"contact-regression\.pt: not a checkpoint"):
        fetch_regression(NAME, tmp_path, server.url)


def test_a_regression_as_large_as_a_model_is_not_taken(server, tmp_path):
    with pytest.raises(UserError, match="announces 5,120,000 bytes"):
        fetch_regression(NAME, tmp_path, server.url)


def test_the_command_fetches_a_model_with_its_regression(
    server, tmp_path, monkeypatch, published, regression, capsys
):
    monkeypatch.setattr(fetching.fetch, "__defaults__", ("auto", server.url))
    monkeypatch.setattr(fetching.fetch_regression, "__defaults__", ("auto", server.url))
    server.files = {f"/regression/{REGRESSION}": regression}
    monkeypatch.setitem(REGRESSION_SHA256, NAME, hashlib.sha256(regression).hexdigest())
    assert main(["fetch", NAME, "--checkpoints", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / NAME}.pt\n"
    assert (tmp_path / f"{NAME}.pt").read_bytes() == CONTENT
    assert (tmp_path / REGRESSION).read_bytes() == regression


def test_two_jobs_download_once(server, tmp_path, published):
    jobs = [threading.Thread(target=fetch, args=(NAME, tmp_path, server.url)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / f"{NAME}.pt").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_fetch_refuses_what_is_not_the_published_file(server, tmp_path):
    with pytest.raises(UserError, match=DIGESTS[NAME]["md5"]):
        fetch(NAME, tmp_path, server.url)
    assert not (tmp_path / f"{NAME}.pt").exists()


@pytest.mark.parametrize("name", ["esm2_tiny_random", "../secret", "esm1b"])
def test_fetch_of_a_name_that_is_not_published_lists_those_that_are(server, tmp_path, name):
    with pytest.raises(UserError, match=r"not a published model.*esm2_t48_15B_UR50D"):
        fetch(name, tmp_path, server.url)
    assert server.requests == []


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path, published):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write .*{NAME}"):
        fetch(NAME, tmp_path / "file" / "folder", server.url)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Length": "99999999999"}, "announces 99,999,999,999 bytes"),
        ({"Content-Length": "-5"}, r"a length that is none \('-5'\)"),
        ({"Content-Length": "5 MB"}, r"a length that is none \('5 MB'\)"),
    ],
)
def test_a_length_that_cannot_be_is_not_believed(server, path, headers, words):
    server.headers = headers
    with pytest.raises(UserError, match=words):
        get(server, path)
    assert not path.exists()


@pytest.mark.parametrize("said", ["bytes 0-9/10", "bytes 4000001-5119999/5120000", "", "garbage"])
def test_another_part_than_was_asked_for_is_not_taken(server, path, said):
    path.with_name("model.pt.part").write_bytes(CONTENT[:4_000_000])
    server.headers = {"Content-Range": said}
    with pytest.raises(UserError, match="another part than was asked for"):
        get(server, path)
    assert path.with_name("model.pt.part").read_bytes() == CONTENT[:4_000_000]


def test_a_body_without_end_is_cut(server, path):
    server.tells_length, server.content = False, CONTENT * 10
    with pytest.raises(UserError, match="sends more than 6,000,000 bytes"):
        get(server, path)
    assert path.with_name("model.pt.part").stat().st_size <= 6_000_000 + BLOCK


def test_a_connection_that_crawls_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(fetching, "SLOW_SECONDS", 0.5)
    server.drips = 100  # five seconds of single bytes
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"fewer than 60,000 bytes came in 0\.5 s"):
        get(server, path)
    assert time.monotonic() - begun < 0.5 * (ATTEMPTS + 2) * 2


def test_a_damaged_file_that_is_there_is_not_called_good(tmp_path, monkeypatch):
    name = "esm2_t6_8M_UR50D"
    (tmp_path / f"{name}.pt").write_bytes(CONTENT)
    with pytest.raises(UserError, match=rf"{name}\.pt: md5 is .*; delete it, then this command"):
        fetch(name, tmp_path)
    monkeypatch.setitem(DIGESTS, name, EXPECTED)
    tmp_path.chmod(0o555)
    assert fetch(name, tmp_path) == tmp_path / f"{name}.pt"
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.pt"]  # no lock is needed
