import subprocess
import sys
import time

from packedesm.embedding.startup import seconds_since_start


def test_a_process_knows_how_long_it_is_there():
    code = """
import time
time.sleep(0.5)
from packedesm.embedding.startup import seconds_since_start, taken_to_start
print(seconds_since_start(), taken_to_start(), taken_to_start())"""
    start = time.monotonic()
    done = subprocess.check_output([sys.executable, "-c", code], text=True)
    since, taken, again = map(float, done.split())
    assert 0.5 <= taken <= since + 0.01 <= time.monotonic() - start + 0.03  # clock ticks are 0.01
    assert again == 0


def test_where_the_system_does_not_tell_cpu_time_is_what_is_known(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_a, **_k: "no such thing")
    assert 0 < seconds_since_start() <= time.process_time()
