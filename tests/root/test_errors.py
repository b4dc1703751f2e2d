"""What foreign text looks like in messages and logs."""

import signal
import subprocess
import sys
import time
import unicodedata

import pytest

from packedesm.errors import UserError, plural, printable, quote
from packedesm.log import job_log

HIDDEN = "\n\r\t\0\x07\x1b\x7f\x85\x9b\u2028\u2029\u202e\u200b\ufeff\udc80"
SEEN = "a é 日本 🧬 \u3000 👩\u200d🔬 %s {x}"


def test_hidden_characters_are_written_out_and_others_left_alone():
    assert printable(SEEN) == SEEN
    for character in HIDDEN:
        shown = printable(f"a{character}b")
        assert shown.isprintable()
        assert shown.startswith("a\\") and shown.endswith("b")
    assert printable("\x1b[31m\n") == r"\x1b[31m\n"


def test_every_control_character_of_unicode_is_hidden():
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp"):
            assert printable(chr(code)) != chr(code)


def test_the_message_of_a_user_error_is_one_printable_line():
    assert str(UserError(f"x{HIDDEN}y")).isprintable()
    assert str(UserError(SEEN)) == SEEN


def test_quoted_text_is_cut():
    assert quote("a\nb") == r"'a\nb'"
    assert quote("x" * 10_000) == repr("x" * 59 + "…")


def test_nothing_in_a_name_ends_a_line_of_the_log(tmp_path, root_logger):
    log = tmp_path / "job.log"
    with job_log(log):
        root_logger.info("read %s", "a\n2026-01-01 ERROR forged\x1b[31m")
    (line,) = log.read_text().splitlines()
    assert line.isprintable()
    assert line.endswith(r"INFO read a\n2026-01-01 ERROR forged\x1b[31m")


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("bad \x1b[31m\n"), 2), (OSError("bad \x1b[31m\nx"), 1)]
)
def test_a_failed_job_tells_why_in_one_printable_line(tmp_path, capsys, root_logger, error, status):
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit) as caught, job_log(log):
        raise error
    assert caught.value.code == status
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert line.startswith("packedesm: ") and line.isprintable()
    assert all(line.isprintable() for line in log.read_text().split("\n"))


@pytest.mark.parametrize("stopping", [True, False], ids=["while embedding", "elsewhere"])
def test_a_job_that_is_interrupted_again_and_again_says_one_line(tmp_path, stopping):
    """The second Ctrl-C comes while Python waits for a thread at its end."""
    script = f"""if True:
        import contextlib, sys, threading, time
        from packedesm.embedding.signals import stopping_on_signals
        from packedesm.log import job_log
        threading.Thread(target=time.sleep, args=(2,)).start()
        other = stopping_on_signals if {stopping} else contextlib.nullcontext
        with job_log(sys.argv[1]), other():
            print("ready", flush=True)
            time.sleep(30)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "job.log")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert error == ("" if stopping else "packedesm: interrupted; the same command goes on\n")
    assert ("SIGINT: stopping" if stopping else "interrupted") in (tmp_path / "job.log").read_text()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 records"), (1, "1 record"), (2, "2 records"), (2000, "2,000 records")],
)
def test_a_count_has_its_noun_in_the_right_number(count, text):
    assert plural(count, "record") == text
