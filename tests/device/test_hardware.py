"""What the job asks of the machine it runs on."""

import platform
import subprocess
import sys

import pytest

# Counts the pages that the system hands out, zeroed, for tensors of 80 MB that come and go.
FAULTS = """
import resource, torch
from packedesm.device.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
keep_freed_memory()
# A few bytes can be left over beside an aligned block. glibc's thread cache takes seven of one
# size and merges none of them: as many blocks may be taken anew before the first is used again.
faults(), faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_tensors():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert before > 100  # 400 MB in pages of 4 kB; 200 pages where the system makes them large
    assert after < before / 10
