import os
import subprocess
import sys

import pytest

# As a layer's activations: many at once, then none.
COUNT = """
import resource, torch
from erase.support.memory import keep_freed_memory

if {kept}:
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):  # the first rounds claim the memory
    before = faults()
    tensors = [torch.ones(1 << 20) for _ in range(16)]
    del tensors
print(faults() - before)
"""
PAGES = 16 << 22 >> 12
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc begins with it, then moves it


def faults(kept: bool) -> int:
    command = [sys.executable, "-c", COUNT.format(kept=kept)]
    environment = os.environ | GIVEN_BACK
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep memory their own way")
def test_memory_that_is_kept_is_not_asked_for_again():
    assert faults(kept=True) < PAGES / 4
    assert faults(kept=False) > PAGES / 2
