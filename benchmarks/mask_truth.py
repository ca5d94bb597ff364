"""MaskTruth: is SalUn's mask worth anything? Saliency against its controls, at equal steps.

Masks {top, random, random_per_layer, bottom} at densities {.1, .3, .5}, and none, times three seeds
and three concepts (two objects, one style), on the bundled model. 80 steps each, so that most masks
still leave something to tell them apart by; training and drawing in bfloat16 autocast.

Run: `python benchmarks/mask_truth.py`; goes on where results/mask_truth.json ends, then prints
accuracies with 95 % t-intervals, and what the differences to the control masks support. Processes
may share the work by `--concepts` and `--seeds`; the tables wait for all.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from intervals import mean_interval
from ledger import Ledger

from erase.core.mask import build_mask
from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import EvaluationConfig, draw_evaluation, judge_drawn
from erase.evaluate.pictures.judges import judge_of
from erase.methods.salun import SalUnConfig, relabelling_loss, saliency, settings_for_teacher
from erase.models.opening import Model, load_model
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.loop import TrainingConfig, finetune

CONCEPTS = ("ghost", "pizza", "ink style")
SEEDS = (0, 1, 2)
DENSITIES = (0.1, 0.3, 0.5)
MASKS = ("top", "random", "random_per_layer", "bottom")
CASES = [*product(MASKS, DENSITIES), ("none", 1.0)]
FIGURES = ("forget_accuracy", "retain_accuracy", "cross_retain_accuracy")
EVALUATION = EvaluationConfig(forget_pictures=32, retain_pictures=64, steps=12)
LEDGER = Ledger(Path(__file__).parent / "results" / "mask_truth.json")


def measure(model: Model, judge: Judge, prompts: PromptSet, erasure: Erasure) -> dict:
    """The three accuracies of the erased model."""
    with erasure.apply(model.pipeline.components), torch.autocast("cpu", torch.bfloat16):
        sampling = replace(model.sampling, steps=EVALUATION.steps)
        drawn = draw_evaluation(model.pipeline, prompts, sampling, EVALUATION, "judging")
    metrics = judge_drawn(drawn, judge, prompts.labels)
    return {name: metrics.accuracies[name].value for name in FIGURES}


def run_seed(model: Model, judge: Judge, concept: str, seed: int) -> None:
    """All masks of one concept and seed: one saliency pass, one set of pictures."""
    missing = [case for case in CASES if (concept, seed, *case) not in LEDGER]
    if not missing:
        return
    prompts = expand(EraseRequest([concept], seed=seed), model.catalogue)
    task = DiffusionTask(
        model.pipeline, prompts, model.sampling, seed=seed, finetuning=model.finetuning(prompts)
    )
    task.prepare()
    config = SalUnConfig(training=TrainingConfig(max_train_steps=80, mixed_precision="bf16"))
    scores = saliency(task, config.estimator)
    for case in missing:
        mask = build_mask(scores, case[1], case[0], seed)
        loss = relabelling_loss(task, config.teacher, config.retain_weight)
        training = settings_for_teacher(task, config)
        erasure = Erasure(finetune(task.with_redirection_pictures(), loss, training, mask))
        figures = measure(model, judge, prompts, erasure)
        LEDGER[concept, seed, *case] = figures
        print(concept, seed, case, figures, flush=True)


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval over runs, in per cent."""
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def table() -> str:
    """Every mask's accuracies, then the paired differences of saliency and random masks."""
    runs = list(product(CONCEPTS, SEEDS))

    def values(case: tuple[str, float], figure: str) -> list[float]:
        return [LEDGER[*run, *case][figure] for run in runs]

    head = "| mask | density | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " |"
    lines = [head, "| --- | --- | --- | --- | --- |"]
    for case in CASES:
        cells = " | ".join(interval(values(case, figure)) for figure in FIGURES)
        lines.append(f"| {case[0]} | {case[1]} | {cells} |")
    lines += ["", "Saliency minus a control, paired by concept and seed, percentage points:", ""]
    lines += [head.replace("| mask", "| against"), "| --- | --- | --- | --- | --- |"]
    for (control, of_control), density in product(CASES, DENSITIES):
        if control == "top" or (control != "none" and of_control != density):
            continue
        pairs = (
            zip(values(("top", density), f), values((control, of_control), f), strict=True)
            for f in FIGURES
        )
        cells = " | ".join(interval([a - b for a, b in pair]) for pair in pairs)
        lines.append(f"| {control} | {density} | {cells} |")
    return "\n".join(lines) + f"\n\nn: {len(runs)} runs a row; {EVALUATION}.\n"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS)
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    args = parser.parse_args()
    model = load_model("emoji")
    judge = judge_of("", model.catalogue)
    for seed, concept in product(args.seeds, args.concepts):
        run_seed(model, judge, concept, seed)
    if all((*run, *case) in LEDGER for run in product(CONCEPTS, SEEDS) for case in CASES):
        print(table())


if __name__ == "__main__":
    main()
