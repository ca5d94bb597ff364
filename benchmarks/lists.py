"""UA, IRA and CRA as lists grow, at once and one request after another, on the bundled model.

Run: `python benchmarks/lists.py [--counts 1 2 5 10 20] [--rows ...] [--turns 5 12] [--seeds 0]`;
goes on where results/lists.json ends, then prints the tables. At once: methods at their defaults on
the first so many of OBJECTS. In turn: an erasure of each object alone by --method, joined in that
order by `compose`, the other way round, as a sum, by TIES and DARE; and of five the third taken out
again, by composing the other four. Six DDIM steps, float32, guidance 4; all 8 cells of each object
and one in eight of the others, or all of them, one picture each. No row is tuned on OBJECTS.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from canvas_bench import opened
from ledger import Ledger

from erase.core.fingerprint import module_fingerprint
from erase.erasure.algebra import compose, dare_merge, merge, ties_merge
from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.pictures.matrix import canvas_matrix, ua_ira_cra
from erase.methods import methods
from erase.models.opening import Model
from erase.prompts.request import EraseRequest, expand, find_concept
from erase.tasks.diffusion.task import DiffusionTask

RESULTS = Path(__file__).parent / "results" / "lists.json"
OBJECTS = (
    "honeybee", "camera", "turtle", "bell", "automobile", "bus", "beer mug", "strawberry", "crown",
    "airplane", "penguin", "mushroom", "lemon", "hamburger", "sailboat", "house", "star",
    "soccer ball", "key", "balloon",
)  # fmt: skip
OTHERS = (
    "dog face",
    "frog",
    "octopus",
    "rose",
    "banana",
    "pizza",
    "rocket",
    "castle",
    "guitar",
    "skull",
)
ROWS = ("projection", "uce", "rece", "speed", "oce", "balance", "hirm")
JOINED: dict[str, Callable[[Sequence[Erasure]], Erasure]] = {
    "compose": compose,
    "compose, other way round": lambda erasures: compose(erasures[::-1]),
    "sum": merge,
    "ties": ties_merge,
    "dare": dare_merge,
}
TAKEN_OUT, EVERY = 2, 8
SHARES = ("UA", "IRA", "CRA")


def erased(
    model: Model, names: Sequence[str], method: str, seed: int, **options: Any
) -> tuple[Erasure, float]:
    """The method's erasure of these objects at once, and its seconds of processor time."""
    prompts = expand(EraseRequest(names, seed=seed), model.catalogue)
    finetuning = model.finetuning(prompts)
    task = DiffusionTask(model.pipeline, prompts, model.sampling, seed=seed, finetuning=finetuning)
    chosen, started = methods()[method], time.process_time()
    return chosen(task, chosen.config(**options)), time.process_time() - started


def figures(
    model: Model, judge: Judge, names: Sequence[str], erasure: Erasure | None, every: int = EVERY
) -> Any:
    """UA, IRA and CRA of these objects, shares; with no erasure the base's."""
    known, pipeline = [find_concept(name, model.catalogue) for name in names], model.pipeline
    applied = erasure.apply(pipeline.components) if erasure else None
    try:
        matrix = canvas_matrix(pipeline, model.catalogue, judge, model.sampling, every, known)
    finally:
        if applied:
            applied.revert()
    rows = [model.catalogue.objects.index(name) for name in names]
    seen = {
        name: float(matrix.object_seen[row].mean()) for name, row in zip(names, rows, strict=True)
    }
    return ua_ira_cra(matrix, known) | {"seen": seen}


def at_once(
    model: Model, judge: Judge, names: Sequence[str], row: str, seed: int, every: int
) -> dict[str, Any]:
    """One row of the first table."""
    if row == "base":
        return figures(model, judge, names, None, every)
    erasure, seconds = erased(model, names, row, seed)
    return figures(model, judge, names, erasure, every) | {
        "seconds": seconds,
        "bytes": erasure.nbytes,
    }


def in_turn(model: Model, judge: Judge, parts: Sequence[Erasure], how: str) -> dict[str, Any]:
    """One row of the second table; what was taken out is judged with the others."""
    names = OBJECTS[: len(parts)]
    if how == "one taken out":
        rest = [part for place, part in enumerate(parts) if place != TAKEN_OUT]
        return figures(model, judge, names, compose(rest))
    return figures(model, judge, names, JOINED[how](parts))


def table(ledger: Ledger, kind: str) -> str:
    """UA / IRA / CRA in per cent, a line a row and a column a length; means over the seeds."""
    keys = [key for key in ledger if key[0] == kind]
    counts = sorted({int(key[1]) for key in keys})
    lines = [
        f"| {kind} | seeds | {' | '.join(map(str, counts))} |",
        "| --- " * (len(counts) + 2) + "|",
    ]
    for row in dict.fromkeys(key[2] for key in keys):
        found = {n: [ledger[key] for key in keys if key[1:3] == (str(n), row)] for n in counts}
        seeds = sorted({len(runs) for runs in found.values() if runs})
        cells = [" / ".join(f"{100 * mean(run[name] for run in runs):.1f}" for name in SHARES)
                 if (runs := found[n]) else "" for n in counts]  # fmt: skip
        lines.append(f"| {row} | {', '.join(map(str, seeds))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 5, 10, 20])
    parser.add_argument("--rows", nargs="*", default=["base", *ROWS])
    parser.add_argument("--turns", nargs="*", type=int, default=[5, 12])
    parser.add_argument("--joined", nargs="*", default=[*JOINED])
    parser.add_argument("--method", default="balance")
    parser.add_argument("--left", type=float, help="balance's, of each request in turn")
    parser.add_argument("--strength", type=float, help="balance's, of each request in turn")
    parser.add_argument("--every_cell", action="store_true", help="at once, all of the others'")
    parser.add_argument("--others", action="store_true", help="at once, OTHERS instead")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, ledger = opened("emoji", "no"), Ledger(RESULTS)
    judge = judge_of("", model.catalogue)
    ledger.require({"model": module_fingerprint(model.pipeline.unet), "every": EVERY,
                    "steps": model.sampling.steps})  # fmt: skip

    objects, every = OTHERS if args.others else OBJECTS, 1 if args.every_cell else EVERY
    kind = "at once" + ", others" * args.others + ", every cell" * args.every_cell

    def keep(key: tuple[Any, ...], work: Callable[[], dict[str, Any]]) -> None:
        if key not in ledger:
            ledger[key] = work()
            print(*key, ledger[key], flush=True)

    for seed in args.seeds:
        parts: list[Erasure] = []
        for count in sorted(args.turns):
            hows = [*args.joined, *(["one taken out"] if count == args.turns[0] else [])]
            given = {"left": args.left, "strength": args.strength}
            options = {name: value for name, value in given.items() if value}
            name = " ".join([args.method, *(f"{name} {value}" for name, value in options.items())])
            keys = {how: ("in turn", count, f"{name}, {how}", seed) for how in hows}
            if all(key in ledger for key in keys.values()):
                continue
            for one in OBJECTS[len(parts) : count]:
                parts.append(erased(model, [one], args.method, seed, **options)[0])
            for how, key in keys.items():
                keep(key, partial(in_turn, model, judge, parts[:count], how))
        for count in args.counts:
            for row in args.rows:
                work = partial(at_once, model, judge, objects[:count], row, seed, every)
                keep((kind, count, row, seed), work)
    for one in dict.fromkeys(["at once", "in turn", kind]):
        print(table(ledger, one))


if __name__ == "__main__":
    main()
