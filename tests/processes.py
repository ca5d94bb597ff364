"""New processes for tests, forked from one that has imported what they need and done no work."""

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
# Of what is installed alone: the warm process does not look in this folder.
FORKED.set_forkserver_preload(["erase.app.build", "erase.evaluate.classifiers.report"])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def said_by(work: Callable, *arguments, exits: int = 0) -> str:
    """What the work prints in a process of its own, which must end so."""
    return _said_by(work, arguments, [{}], exits)


def said_by_two(work: Callable, *arguments, environment: Mapping[str, str] | None = None) -> str:
    """What the work prints in two processes that talk over gloo."""
    shared = {
        **(environment or {}),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "yes", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return _said_by(work, arguments, ranks)


def _said_by(work: Callable, arguments: tuple, environments: list[dict], exits: int = 0) -> str:
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        processes = [
            FORKED.Process(target=_work, args=(environment, said, work, arguments))
            for environment in environments
        ]
        for process in processes:
            process.start()
        ended = {process.sentinel: process for process in processes}
        while ended:
            for sentinel in wait([*ended]):
                if ended.pop(sentinel).exitcode != exits:  # the other would wait for it in vain
                    for process in ended.values():
                        process.terminate()
        assert [process.exitcode for process in processes] == [exits] * len(processes)
        return said.read_text()


def _work(environment: dict, said: Path, work: Callable, arguments: tuple):
    os.environ |= environment
    with said.open("a") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
    sys.exit(work(*arguments))
