"""One search for every method of pipelines, with as many runs for each, on pilot concepts.

Run: `python benchmarks/fair.py [--methods NAME ...]`; goes on where results/fair.json ends, then
prints the table. Searched is one setting a method, the rate of what trains, at its default and at
three factors of it. Every value erases an object and a style, which no table has. The best is the
one whose worst of UA, IRA and CRA, of the latter two their share of the base's, is highest, on
average over both; of equals, the default. Six DDIM steps, float32, guidance 4, seed 0: all cells of
the pilot and one in sixteen of the others, one picture each. `emoji_canvas.py` has what is found as
rows `METHOD, tuned`.
"""

import argparse
import time
from random import Random
from statistics import fmean
from typing import Any

import torch
from canvas_bench import opened
from fair_settings import BASE, RESULTS, SETTINGS, scores, searched, with_factor
from ledger import Ledger

from erase.core.delta import NotFiniteError
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.pictures.matrix import canvas_matrix, ua_ira_cra
from erase.methods import methods
from erase.models.opening import Model
from erase.prompts.request import EraseRequest, expand, find_concept
from erase.tasks.diffusion.task import DiffusionTask

TAKEN, DRAW = ("ghost", "dagger", "bomb", "ink style"), 20261128
EVERY, SEED = 16, 0
METHODS = (
    "projection", "balance", "uce", "rece", "speed", "oce", "gradient_ascent", "esd",
    "neggrad_plus", "salun", "concept_ablation", "scrub",
)  # fmt: skip


def pilots_of(model: Model) -> list[str]:
    """An object and a style that no table has."""
    kinds = model.catalogue.objects, [f"{style} style" for style in model.catalogue.styles]
    random = Random(DRAW)
    return [random.choice([name for name in kind if name not in TAKEN]) for kind in kinds]


def task_of(model: Model, name: str) -> DiffusionTask:
    """Erasing the pilot."""
    prompts = expand(EraseRequest([name], seed=SEED), model.catalogue)
    finetuning = model.finetuning(prompts)
    return DiffusionTask(model.pipeline, prompts, model.sampling, seed=SEED, finetuning=finetuning)


def shares(model: Model, judge: Judge, name: str) -> dict[str, float]:
    """UA, IRA and CRA of the pilot in the model as it is."""
    concepts, catalogue = [find_concept(name, model.catalogue)], model.catalogue
    matrix = canvas_matrix(model.pipeline, catalogue, judge, model.sampling, EVERY, concepts)
    return ua_ira_cra(matrix, concepts)


def tried(
    model: Model, judge: Judge, task: DiffusionTask, pilot: str, method: str, factor: float
) -> dict[str, Any]:
    """The figures of one run; only its seconds where its numbers break."""
    config, started = with_factor(method, task, factor), time.process_time()
    try:
        erasure = methods()[method](task, config)
    except NotFiniteError:
        return {"seconds": time.process_time() - started}
    seconds = {"seconds": time.process_time() - started}
    with erasure.apply(model.pipeline.components):
        return shares(model, judge, pilot) | seconds


def table(ledger: Ledger) -> str:
    """One line a method: its setting, its factors' worst shares in per cent, and the best."""
    lines = ["| method | setting | factor: worst share | best | CPU seconds |", "| --- " * 5 + "|"]
    for method in sorted({key[0] for key in ledger if len(key) == 3}):
        if found := scores(ledger, method):
            setting = SETTINGS[method][0] if method in SETTINGS else "rate"
            cells = ", ".join(f"{factor:g}: {100 * found[factor]:.1f}" for factor in sorted(found))
            best = max(found, key=found.__getitem__)
            cost = fmean(ledger[key]["seconds"] for key in ledger if key[0] == method)
            lines.append(f"| {method} | {setting} | {cells} | {best:g} | {cost:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="*", choices=sorted(methods()), default=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, ledger = opened("emoji", "no"), Ledger(RESULTS)
    judge, pilots = judge_of("", model.catalogue), pilots_of(model)
    ledger.require({"pilots": pilots, "every": EVERY, "seed": SEED})
    for pilot in pilots:
        if (BASE, pilot) not in ledger:
            ledger[BASE, pilot] = shares(model, judge, pilot)
        task = task_of(model, pilot)
        for method in args.methods:
            for factor in searched(method, task)[2]:
                if (method, factor, pilot) not in ledger:
                    found = tried(model, judge, task, pilot, method, factor)
                    ledger[method, factor, pilot] = found
                    print(method, factor, pilot, found, flush=True)
    print(table(ledger))


if __name__ == "__main__":
    main()
