"""How soon the app answers, and whether its memory grows, on the bundled model.

Run: `python benchmarks/app.py`. One server in this process and one client: seconds of a first
picture with and without an erasure, seconds until a projection can be compared and until it is
measured, and the resident memory after 10 and after 60 generations of other prompts at 8 steps,
each of them with its four nearby concepts.
"""

import time
from collections.abc import Callable
from typing import Any

from core_ratios import resident
from gradio_client import Client

from erase.app.build import served
from erase.app.settings import AppConfig
from erase.bundled import EMOJI
from erase.prompts.catalogue import Catalogue

WARM, GENERATIONS, STEPS, FEW = 10, 50, 20, 8
NAME = "ghost, projection"


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Serve, and measure."""
    with served(AppConfig(), quiet=True) as (address, _):
        measure(address)


def measure(address: str) -> None:
    """Ask, and print."""
    client, known = Client(address, verbose=False), Catalogue.of_model(EMOJI)
    prompts = [known.prompt(name, style) for style in known.styles for name in known.objects]

    def generate(prompt: str, erasures: list[str], steps: int = STEPS) -> tuple:
        return client.predict(prompt, erasures, 1.0, 0, steps, False, api_name="/generate")

    print(f"first picture, {STEPS} steps: {timed(lambda: generate(prompts[0], [])):.1f} s")
    started = time.perf_counter()
    job = client.submit(["ghost"], [], "", "projection", "{}", 8, 8, api_name="/erase")
    while not job.done() and not any("now under Compare" in said[0] for said in job.outputs()):
        time.sleep(0.05)
    erased = time.perf_counter() - started
    job.result()
    print(f"projection: {erased:.1f} s until compared, "
          f"{time.perf_counter() - started:.1f} s with 2 x 16 pictures judged")  # fmt: skip
    print(f"base and erased, with four nearby: {timed(lambda: generate(prompts[1], [NAME])):.1f} s")
    memory = []
    for count, prompt in enumerate(prompts[: WARM + GENERATIONS], 1):
        generate(prompt, [NAME], FEW)
        if count in (WARM, WARM + GENERATIONS):
            memory.append(resident("VmRSS"))
    growth = 100 * (memory[1] / memory[0] - 1)
    print(f"memory: {memory[0]:.0f} MB after {WARM} generations, {memory[1]:.0f} MB after "
          f"{GENERATIONS} more ({growth:+.1f} %)")  # fmt: skip


if __name__ == "__main__":
    main()
