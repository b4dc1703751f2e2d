"""How a job of the workflow keeps its log and reports failure."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packedesm.errors import Fault, UserError, permissions_told, printable


class LineFormatter(logging.Formatter):
    """One line a message: what names and values hold cannot end it or command a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return time, level and the message in one line."""
        record.message = printable(record.message.rstrip())
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return a traceback, its lines escaped one by one."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Send this process's log to `path`, and turn an exception into an exit status.

    The user's faults (`UserError`) become one line in the log and on standard error and exit
    status 2, the machine's (`Fault`) such a line and 1; any other exception a traceback in the
    log, its last line on standard error, and 1. An interrupt is such a line and 130.
    """
    logging.raiseExceptions = False  # a log on a full disk is no reason for a traceback
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    try:
        with permissions_told():
            yield
    except (UserError, Fault) as error:
        logging.error("%s", error)
        print(f"packedesm: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None
    except SystemExit:  # a signal stopped it
        expect_end()
        raise
    except KeyboardInterrupt:
        expect_end()
        logging.error("interrupted")
        print("packedesm: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        logging.exception("the job failed")
        line = printable(f"packedesm: {type(error).__name__}: {error} (see {path})")
        print(line, file=sys.stderr)
        raise SystemExit(1) from None


def expect_end() -> None:
    """Ignore Ctrl-C from now on: this process ends, and Python would answer with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
