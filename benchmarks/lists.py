"""UA, IRA and CRA as lists grow, at once and one request after another, on the bundled model.

Run: `python benchmarks/lists.py [--counts 1 2 5 10 20] [--rows ...] [--turns 5 12] [--methods ...]
[--seeds 0]`; goes on where results/lists.json ends, then prints the tables. At once: methods at
their defaults on the first so many of OBJECTS, and `hardened`, a student of `balance`. In turn: an
erasure of each object alone, made once and kept in runs/lists (move it away when a method has
changed), joined in that order by `compose`, the other way round, as a sum, by TIES and DARE; and of
five the third taken out again, by joining the other four. One on another (`--on_another`): an
erasure of the denoiser alone, of the model that all before it have erased; and the same with their
prompts and anchors kept. Six DDIM steps, float32, guidance 4; all 8 cells of each object and one in
eight of the others, or all of them, one picture each. No row is tuned on OBJECTS.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from canvas_bench import opened
from hardening import hardening
from ledger import Ledger

from erase.core.fingerprint import module_fingerprint
from erase.erasure.algebra import compose, dare_merge, merge, ties_merge
from erase.erasure.erasure import RECIPE, Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.pictures.matrix import canvas_matrix, ua_ira_cra
from erase.methods import methods
from erase.models.opening import Model
from erase.prompts.request import EraseRequest, expand, find_concept
from erase.runs.opening import kept_prompts
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.task import DiffusionTask

RESULTS = Path(__file__).parent / "results" / "lists.json"
KEPT = Path(__file__).parent.parent / "runs" / "lists"
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
TRAINED, HARDENED = ("salun", "esd"), "hardened"
HARDENING, TEACHER = hardening(0.25, 200, forget_share=0.06, size=0.25), "balance"
JOINED: dict[str, Callable[[Sequence[Erasure]], Erasure]] = {
    "compose": compose,
    "compose, other way round": lambda erasures: compose(erasures[::-1]),
    "sum": merge,
    "ties": ties_merge,
    "dare": dare_merge,
}
ON_ANOTHER = {f"{method}, one on another{kept}": (method, bool(kept))
              for method in TRAINED for kept in ("", ", kept")}  # fmt: skip
OUT, TAKEN_OUT, OF, EVERY = ", one taken out", 2, 5, 8
WAYS = (*JOINED, "compose" + OUT, "sum" + OUT)
SHARES = ("UA", "IRA", "CRA")


def task_of(
    model: Model, names: Sequence[str], seed: int, config: DiffusionTaskConfig | None = None
) -> DiffusionTask:
    """Erasing these objects at once."""
    prompts = expand(EraseRequest(names, seed=seed), model.catalogue)
    finetuning = model.finetuning(prompts)
    return DiffusionTask(
        model.pipeline, prompts, model.sampling, config, seed, finetuning=finetuning
    )


def erased(task: DiffusionTask, method: str, **options: Any) -> tuple[Erasure, float]:
    """The method's erasure, and its seconds of processor time."""
    chosen, started = methods()[method], time.process_time()
    return chosen(task, chosen.config(**options)), time.process_time() - started


def hardened(names: Sequence[str], seed: int) -> tuple[Erasure, float]:
    """What learns anew what TEACHER's erasure of these objects answers, in bfloat16 autocast."""
    task = task_of(opened("emoji", "bf16"), names, seed, DiffusionTaskConfig(batch_size=32))
    folder, started = KEPT / HARDENED / str(seed) / str(len(names)), time.process_time()
    erased(task, TEACHER)[0].save_pretrained(folder)
    options = vars(HARDENING) | {"folder": str(folder)}
    return erased(task, "harden", **options)[0], time.process_time() - started


def kept(folder: Path, task: Callable[[], DiffusionTask], method: str, **options: Any) -> Erasure:
    """The folder's erasure, made by the method if none is there."""
    if not (folder / RECIPE).exists():
        erased(task(), method, **options)[0].save_pretrained(folder)
    return Erasure.from_pretrained(folder)


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
    made = hardened(names, seed) if row == HARDENED else erased(task_of(model, names, seed), row)
    erasure, seconds = made
    return figures(model, judge, names, erasure, every) | {
        "seconds": seconds,
        "bytes": erasure.nbytes,
    }


def in_turn(model: Model, judge: Judge, parts: Sequence[Erasure], how: str) -> dict[str, Any]:
    """One row of those in turn; what was taken out is judged with the others."""
    rest = [part for place, part in enumerate(parts) if place != TAKEN_OUT or OUT not in how]
    return figures(model, judge, OBJECTS[: len(parts)], JOINED[how.removesuffix(OUT)](rest))


def on_another(
    model: Model, judge: Judge, row: str, seed: int, counts: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The figures after so many objects, each erased from the model that all before it changed."""
    method, keeps = ON_ANOTHER[row]
    with ExitStack() as applied:
        before: list[Path] = []
        for place, name in enumerate(OBJECTS[: max(counts)]):
            # The first has nothing to keep.
            folder = KEPT / (row if place else row.removesuffix(", kept")) / str(seed) / name
            keep = kept_prompts([f"@{one}" for one in before]) if keeps else ()
            config = DiffusionTaskConfig(("unet",), keep=keep)
            part = kept(folder, partial(task_of, model, [name], seed, config), method)
            applied.callback(part.apply(model.pipeline.components).revert)
            before.append(folder)
            if place + 1 in counts:
                yield place + 1, figures(model, judge, OBJECTS[: place + 1], None)


def runs_of(ledger: Ledger, kind: str, count: int, row: str) -> dict[str, dict[str, Any]]:
    """The figures of a row by seed; one object in turn is one at once."""
    if kind == "in turn" and count == 1 and row.endswith(", sum"):
        kind, row = "at once", row.removesuffix(", sum")
    return {key[3]: ledger[key] for key in ledger if key[:3] == (kind, str(count), row)}


def shares(runs: Mapping[str, Mapping[str, float]]) -> str:
    """UA / IRA / CRA in per cent, means over the seeds."""
    means = (100 * mean(run[name] for run in runs.values()) for name in SHARES)
    return " / ".join(f"{share:.1f}" for share in means)


def table(ledger: Ledger, rows: Mapping[str, tuple[str, str]], counts: Sequence[int]) -> str:
    """A line a row, by what it is called its kind and name in the ledger, and a column a length."""
    lines = [f"| | seeds | {' | '.join(map(str, counts))} |", "| --- " * (len(counts) + 2) + "|"]
    for label, (kind, row) in rows.items():
        found = [runs_of(ledger, kind, count, row) for count in counts]
        seeds = sorted({len(runs) for runs in found if runs})
        cells = [shares(runs) if runs else "" for runs in found]
        lines.append(f"| {label} | {', '.join(map(str, seeds))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def out_again(ledger: Ledger) -> str:
    """What is seen of four and of the fifth, with all five erased and with the fifth taken out."""
    fifth, base = OBJECTS[TAKEN_OUT], runs_of(ledger, "at once", OF, "base")["0"]["seen"]
    four = [name for name in OBJECTS[:OF] if name != fifth]
    lines = [
        "| | seeds | four, of five | four alone | fifth, of five | fifth, taken out | its base |",
        "| --- " * 7 + "|",
    ]
    for row in dict.fromkeys(key[2] for key in ledger if key[0] == "in turn" and OUT in key[2]):
        whole, without = (runs_of(ledger, "in turn", OF, r) for r in (row.removesuffix(OUT), row))
        both = [
            [runs[seed] for seed in sorted(whole.keys() & without)] for runs in (whole, without)
        ]
        if both[0]:
            seen = [seen_of(runs, names) for names in (four, [fifth]) for runs in both]
            said = " | ".join(f"{100 * share:.1f}" for share in [*seen, base[fifth]])
            lines.append(f"| {row.removesuffix(OUT)} | {len(both[0])} | {said} |")
    return "\n".join(lines) + "\n"


def seen_of(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> float:
    """The share of these objects' cells that show them, over all seeds."""
    return mean(run["seen"][name] for run in runs for name in names)


def tables(ledger: Ledger) -> list[str]:
    """At once and in turn; ways to join what was made in turn; every cell; one taken out again."""
    main = {"base": ("at once", "base")}
    for method in (*ROWS, *TRAINED, HARDENED):
        main |= {method: ("at once", method), f"{method}, in turn": ("in turn", f"{method}, sum")}
    main |= {row: ("in turn", row) for row in ON_ANOTHER}
    known = {key[::2] for key in ledger}
    main = {label: row for label, row in main.items() if row in known}
    names = sorted({key[2] for key in ledger if key[0] == "in turn" and OUT not in key[2]})
    ways = {row: ("in turn", row) for row in names if row.startswith(TEACHER)}
    whole = {row: ("at once, every cell", row) for row in ("base", TEACHER, "salun")}
    others = {
        f"the others: {row}": ("at once, others, every cell", row) for row in ("base", TEACHER)
    }
    return [
        table(ledger, main, [1, 2, 5, 10, 20]),
        table(ledger, whole | others, [10]),
        table(ledger, ways, [5, 12]),
        out_again(ledger),
    ]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 5, 10, 20])
    parser.add_argument("--rows", nargs="*", default=["base", *ROWS])
    parser.add_argument("--turns", nargs="*", type=int, default=[5, 12])
    parser.add_argument("--joined", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--methods", nargs="*", default=[TEACHER])
    parser.add_argument("--on_another", nargs="*", choices=ON_ANOTHER, default=[])
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

    given = {"left": args.left, "strength": args.strength}
    options = {name: value for name, value in given.items() if value}
    # All methods share its pictures.
    single = cache(lambda name, seed: task_of(model, [name], seed))
    for seed in args.seeds:
        for method, count in product(args.methods, sorted(args.turns)):
            hows = [how for how in args.joined if OUT not in how or count == OF]
            name = " ".join([method, *(f"{name} {value}" for name, value in options.items())])
            keys = {how: ("in turn", count, f"{name}, {how}", seed) for how in hows}
            if all(key in ledger for key in keys.values()):
                continue
            folder = KEPT / name / str(seed)
            parts = [kept(folder / one, partial(single, one, seed), method, **options)
                     for one in OBJECTS[:count]]  # fmt: skip
            for how, key in keys.items():
                keep(key, partial(in_turn, model, judge, parts, how))
        for row in args.on_another:
            if any(("in turn", count, row, seed) not in ledger for count in args.turns):
                for count, found in on_another(model, judge, row, seed, args.turns):
                    keep(("in turn", count, row, seed), partial(dict, found))
        for count, row in product(args.counts, args.rows):
            work = partial(at_once, model, judge, objects[:count], row, seed, every)
            keep((kind, count, row, seed), work)
    print("\n".join(tables(ledger)))


if __name__ == "__main__":
    main()
