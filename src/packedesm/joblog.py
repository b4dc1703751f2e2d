"""How a job of the workflow keeps its log and reports failure."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packedesm.errors import UserError

FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Send this process's log to `path`, and turn an exception into an exit status.

    The user's faults (`UserError`) become one line in the log and on standard error and exit
    status 2; any other exception a traceback in the log, its last line on standard error, and 1.
    """
    logging.basicConfig(filename=path, filemode="w", level=logging.INFO, format=FORMAT, force=True)
    logging.captureWarnings(True)
    try:
        yield
    except UserError as error:
        logging.error("%s", error)
        print(f"packedesm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        logging.exception("the job failed")
        print(f"packedesm: {type(error).__name__}: {error} (see {path})", file=sys.stderr)
        raise SystemExit(1) from None
