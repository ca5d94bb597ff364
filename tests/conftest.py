import gc
import os
import signal

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two workers of two threads each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In the background a shell has SIGINT ignored, by all that the suite starts too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The process that only hands out tests reads this file too, so nothing heavy is imported here.

LONGEST = ("test_contract", "test_fsdp", "test_second_device", "test_app", "test_cli")


def pytest_collection_modifyitems(items):
    # Begun last, a long test runs alone while the other worker has nothing left to do.
    items.sort(key=lambda item: not item.path.stem.startswith(LONGEST))


def pytest_collection_finish():
    gc.freeze()  # what is imported stays; to look through it over and over takes its time


@pytest.fixture
def tiny_pipeline():
    from hosts import build_tiny_pipeline

    return build_tiny_pipeline()


@pytest.fixture
def tiny_task(tiny_pipeline):
    from hosts import build_tiny_task

    return build_tiny_task(tiny_pipeline)


@pytest.fixture(scope="session")
def trained():
    from hosts import trained_digits_model

    return trained_digits_model()
