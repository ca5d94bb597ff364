"""Strangers at the public app on the bundled model: a crowd, jobs left behind, forged calls.

Run: `python benchmarks/crowd.py [--seed 0]`. The app is served by a process of its own, and asked
by this one. 60 visitors draw in three steps at once, three with an erasure; 30 jobs are left
behind, half never listened to and half left as soon as they are in line; 100 calls are forged.
After each part the next visitor's seconds until their picture are told, then whether every tensor
of the base has the bytes it had, and the server's resident memory.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Coroutine
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import httpx
from core_ratios import resident

from erase.app.build import served
from erase.app.settings import AppConfig
from erase.bundled import EMOJI
from erase.core.fingerprint import module_fingerprint
from erase.prompts.catalogue import Catalogue

WARM, CROWD, LEFT, FORGED, STEPS, LONGEST = 10, 60, 30, 100, 3, 300
ENDPOINTS = {
    "generate": ["a ghost in noto style", [], 1.0, 0, STEPS, False],
    "erase": [["ghost"], [], "", "projection", "{}", 4, 4],
    "where": ["ghost", None],
    "attack": ["ghost", "recall", "{}", 4],
    "matrix": ["ghost"],
    "classify": ["3", "projection", "{}"],
}
WRONG = (
    b"NaN", b"Infinity", b"1e999", b"-1.5", b"1" + b"0" * 60, b"{}", b"[[1]]", b'"\\ud800"', b"[",
    b'"' + b"x" * 10_000 + b'"', b'{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}',
)  # fmt: skip


def serve(pipe: Connection) -> None:
    """Serve until told to end; on every other word, send the base's fingerprints and memory."""
    with served(AppConfig(public=True), quiet=True) as (address, studio):
        pipe.send(address)
        while pipe.recv() != "end":
            parts = studio.model.pipeline.components
            names = ("unet", "text_encoder", "vae")
            pipe.send(([module_fingerprint(parts[name]) for name in names], resident("VmRSS")))


async def joined(api: httpx.AsyncClient, data: list[Any]) -> str:
    """The event of a drawing that is put in line."""
    answer = await api.post("call/generate", json={"data": data})
    answer.raise_for_status()
    return answer.json()["event_id"]


async def drawn(api: httpx.AsyncClient, data: list[Any]) -> bool:
    """Whether a drawing is put in line and comes."""
    heard = await api.get(f"call/generate/{await joined(api, data)}")
    return "event: complete" in heard.text


async def left(api: httpx.AsyncClient, data: list[Any], listened: bool) -> None:
    """Put a drawing in line, and go."""
    event = await joined(api, data)
    if listened:
        async with api.stream("GET", f"call/generate/{event}"):
            pass


async def forged(api: httpx.AsyncClient, rng: random.Random) -> bool:
    """Whether a call that cannot be is answered by one sentence."""
    name = rng.choice(list(ENDPOINTS))
    data = [json.dumps(value).encode() for value in ENDPOINTS[name]]
    data[rng.randrange(len(data))] = rng.choice(WRONG)
    if rng.random() < 0.2:
        data = data[1:] if rng.random() < 0.5 else [*data, b"1"]
    body = b'{"data": [' + b", ".join(data) + b"]}"
    path = rng.choice((f"call/{name}", f"run/{name}", "call/none"))
    answer = await api.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code != 200:
        return _sentence(answer.json()["detail"])
    heard = await api.get(f"call/{name}/{answer.json()['event_id']}")
    last = [line for line in heard.text.splitlines() if line.startswith("data: ")][-1]
    return "event: error" in heard.text and _sentence(json.loads(last[6:])["error"])


def _sentence(said: Any) -> bool:
    one_line = isinstance(said, str) and 0 < len(said) <= LONGEST and "\n" not in said
    return one_line and "Traceback" not in said


async def part(name: str, work: list[Coroutine], api: httpx.AsyncClient, data: list[Any]) -> None:
    """Do the work at once, then draw as the next visitor, and print how it went."""
    started = time.perf_counter()
    answers = await asyncio.gather(*work)
    done = time.perf_counter()
    assert await drawn(api, data)
    next_one = time.perf_counter() - done
    print(f"{name}: {len(answers)} in {done - started:.1f} s, "
          f"{sum(answer is not False for answer in answers)} as they should; next visitor served "
          f"after {next_one:.1f} s", flush=True)  # fmt: skip


async def strangers(address: str, pipe: Connection, rng: random.Random) -> None:
    """All parts in turn, then what became of the base and the memory."""
    known = Catalogue.of_model(EMOJI)

    def ask(number: int) -> list[Any]:
        prompt = known.prompt(rng.choice(known.objects), rng.choice(known.styles))
        chosen = [] if number % 20 else ["ghost"]
        return [prompt, chosen, 1.0, rng.randrange(2**31), STEPS, False]

    limits = httpx.Limits(max_connections=None)
    base = f"{address}gradio_api/"
    async with httpx.AsyncClient(base_url=base, timeout=None, limits=limits) as api:
        await asyncio.gather(*(drawn(api, ask(number)) for number in range(WARM)))
        before, memory = looked(pipe)
        print(f"before: {memory:.0f} MB after {WARM} drawings", flush=True)
        await part("crowd", [drawn(api, ask(i)) for i in range(CROWD)], api, ask(1))
        await part("left behind", [left(api, ask(i), i % 2 > 0) for i in range(LEFT)], api, ask(1))
        await part("forged", [forged(api, rng) for _ in range(FORGED)], api, ask(1))
        after, then = looked(pipe)
        growth = 100 * (then / memory - 1)
        print(f"after: base equal {after == before}, {then:.0f} MB ({growth:+.1f} %)")


def looked(pipe: Connection) -> tuple[list[str], float]:
    """The base's fingerprints and the server's megabytes."""
    pipe.send("look")
    return pipe.recv()


def main() -> None:
    """Serve, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = random.Random(parser.parse_args().seed)
    context = get_context("spawn")
    pipe, other = context.Pipe()
    server = context.Process(target=serve, args=(other,), daemon=True)
    server.start()
    asyncio.run(strangers(pipe.recv(), pipe, rng))
    pipe.send("end")
    server.join()


if __name__ == "__main__":
    main()
