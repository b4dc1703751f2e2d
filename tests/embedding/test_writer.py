"""The thread that writes: in order, bounded, and nothing after a failure."""

import signal
import threading
import time

import pytest

from packedesm.embedding.writer import Writer


def test_all_that_was_put_is_run_in_order_whatever_ends_the_block():
    done = []
    with pytest.raises(SystemExit), Writer() as writer:
        for number in range(100):
            writer.put(lambda number=number: done.append(number), 1)
        raise SystemExit
    assert done == list(range(100))


@pytest.fixture
def alarm():
    """Let SIGALRM end the main thread's block as SIGTERM does a job's."""

    def stop(_number, _frame):
        raise SystemExit(143)

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("ending", [None, ValueError("a bug")])
def test_a_signal_at_the_end_does_not_leave_behind_what_was_put(ending):
    def write(number):
        time.sleep(0.02)
        done.append(number)

    done = []
    with pytest.raises(SystemExit), Writer() as writer:
        for number in range(10):
            writer.put(lambda number=number: write(number), 1)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        if ending is not None:
            raise ending
    assert done == list(range(10))


@pytest.mark.usefixtures("alarm")
def test_a_signal_while_the_first_is_put_does_not_leave_it_behind():
    def write():
        signal.raise_signal(signal.SIGALRM)
        time.sleep(0.01)
        done.append(1)

    done = []
    for number in range(1, 21):
        with pytest.raises(SystemExit), Writer() as writer:
            writer.put(write, 1)
        assert len(done) == number


def test_after_a_failure_none_is_run_and_it_is_raised():
    done, let_fail = [], threading.Event()

    def fail():
        let_fail.wait(5)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Writer() as writer:
        writer.put(fail, 1)
        writer.put(lambda: done.append(1), 1)
        let_fail.set()
    assert done == []


def test_one_that_is_larger_than_the_limit_waits_for_all_before_it():
    done = []
    with Writer(limit=10) as writer:
        writer.put(lambda: done.append("small"), 9)
        writer.put(lambda: done.append("large"), 1000)
        assert done[0] == "small"
    assert done == ["small", "large"]
