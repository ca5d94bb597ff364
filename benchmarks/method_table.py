"""Every registered method at its default settings on the bundled model, beside two baselines.

Run: `python benchmarks/method_table.py`; goes on where results/method_table.json ends, and prints
seconds, artefact bytes and the three accuracies on one object and one style. The forget, anchor and
retain pictures are drawn once for all methods (row "drawing"), so that a method's seconds are its
own. Judged pictures are drawn in bfloat16 autocast. The baselines change no weight: the concept as
negative prompt, and safe latent diffusion (SLD, Schramowski et al., CVPR 2023) with the numbers of
its "medium" setting, made for a model that predicts noise; this one predicts velocities.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from ledger import Ledger
from torch import Tensor

from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import (
    EvaluationConfig,
    EvaluationPictures,
    draw_evaluation,
    evaluation_prompts,
    judge_drawn,
)
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.reports import ACCURACIES
from erase.methods import methods
from erase.models.opening import Model, load_model
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.prompts.seeds import EVALUATION_SEED
from erase.tasks.diffusion.sampling import at_once
from erase.tasks.diffusion.task import DiffusionTask

CONCEPTS = ("ghost", "ink style")
EVALUATION = EvaluationConfig()
LEDGER = Ledger(Path(__file__).parent / "results" / "method_table.json")
SLD_SCALE, SLD_THRESHOLD, SLD_WARMUP, SLD_MOMENTUM, SLD_BETA = 1000.0, 0.01, 0.2, 0.3, 0.4
Draw = Callable[[Model, list[str], list[int]], Tensor]


def draw_negative(concept: str, model: Model, texts: list[str], seeds: list[int]) -> Tensor:
    """Plain sampling with the concept as negative prompt."""
    return model.pipeline(
        texts,
        negative_prompt=[concept] * len(texts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=model.sampling.steps,
        guidance_scale=model.sampling.guidance_scale,
        output_type="pt",
    ).images


@torch.no_grad()
def draw_safe(concept: str, model: Model, texts: list[str], seeds: list[int]) -> Tensor:
    """SLD: guidance loses its part towards the concept, where the prompt goes there."""
    pipeline, sampling = model.pipeline, model.sampling
    count, scheduler = len(texts), pipeline.scheduler
    embeddings = [embed(pipeline, names) for names in ([""] * count, texts, [concept] * count)]
    shape = (1, pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    latents, momentum = torch.cat(noise), torch.zeros(count, *shape[1:])
    scheduler.set_timesteps(sampling.steps)
    for i, step in enumerate(scheduler.timesteps):
        inputs = latents.repeat(3, 1, 1, 1)
        plain, prompted, unsafe = pipeline.unet(inputs, step, torch.cat(embeddings)).sample.chunk(3)
        weight = ((prompted - unsafe).abs() * SLD_SCALE).clamp(max=1.0)
        weight = torch.where(prompted - unsafe >= SLD_THRESHOLD, 0.0, weight)
        safety = (unsafe - plain) * weight + SLD_MOMENTUM * momentum
        momentum = SLD_BETA * momentum + (1 - SLD_BETA) * safety
        direction = prompted - plain
        if i >= SLD_WARMUP * sampling.steps:
            direction = direction - safety
        output = plain + sampling.guidance_scale * direction
        latents = scheduler.step(output, step, latents).prev_sample
    pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return (pictures / 2 + 0.5).clamp(0, 1)


def embed(pipeline: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    """What cross-attention reads of the texts."""
    return pipeline.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)[0]


def baseline(draw: Draw, model: Model, prompts: PromptSet) -> EvaluationPictures:
    """The evaluation's own prompts and seeds, drawn another way."""
    chosen, forget_count = evaluation_prompts(prompts, EVALUATION)
    texts = [prompt.text for prompt in chosen]
    seeds = list(range(EVALUATION_SEED, EVALUATION_SEED + len(texts)))
    size = at_once(model.pipeline)
    pictures = [
        draw(model, texts[i : i + size], seeds[i : i + size]) for i in range(0, len(texts), size)
    ]
    return EvaluationPictures(torch.cat(pictures).float(), chosen, forget_count)


def judged(
    draw: Callable[[], EvaluationPictures], judge: Judge, prompts: PromptSet
) -> dict[str, float]:
    """The three accuracies of what is drawn, in bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw()
    metrics = judge_drawn(drawn, judge, prompts.labels)
    return {key: metrics.accuracies[key].value for key in ACCURACIES}


def run_row(name: str, model: Model, judge: Judge, task: DiffusionTask, concept: str) -> dict:
    """Accuracies and cost of the base, a baseline, or a method with its defaults."""
    evaluate = partial(
        draw_evaluation, model.pipeline, task.prompts, model.sampling, EVALUATION, name
    )
    if name in BASELINES:
        evaluate = partial(baseline, partial(BASELINES[name], concept), model, task.prompts)
    if name == "base" or name in BASELINES:
        return {"seconds": 0.0, "bytes": 0} | judged(evaluate, judge, task.prompts)
    started = time.perf_counter()
    erasure = methods()[name](task)
    cost = {"seconds": time.perf_counter() - started, "bytes": erasure.nbytes}
    with erasure.apply(model.pipeline.components):
        return cost | judged(evaluate, judge, task.prompts)


def prepared(model: Model, concept: str) -> DiffusionTask:
    """The concept's task with all its pictures drawn."""
    prompts = expand(EraseRequest([concept]), model.catalogue)
    task = DiffusionTask(
        model.pipeline, prompts, model.sampling, finetuning=model.finetuning(prompts)
    )
    started = time.perf_counter()
    task.with_redirection_pictures().prepare()
    if (concept, "drawing") not in LEDGER:
        LEDGER[concept, "drawing"] = {"seconds": time.perf_counter() - started}
    return task


BASELINES = {"negative prompt": draw_negative, "SLD": draw_safe}


def table(names: Sequence[str]) -> str:
    """All methods as Markdown, the concepts side by side."""
    columns = ("forget", "retain", "cross-retain", "seconds", "MB")
    head = ["method", *(f"{concept}: {column}" for concept in CONCEPTS for column in columns)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name in names:
        cells = [name]
        for row in (LEDGER[concept, name] for concept in CONCEPTS):
            cells += [f"{100 * row[key]:.1f}" for key in ACCURACIES]
            cells += [f"{row['seconds']:.1f}", f"{row['bytes'] / 1e6:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    drawing = (f"{concept} {LEDGER[concept, 'drawing']['seconds']:.1f} s" for concept in CONCEPTS)
    lines += ["", f"Drawing: {', '.join(drawing)}. Protocol: {EVALUATION}, bfloat16, seed 0."]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    model = load_model("emoji")
    model.pipeline.set_progress_bar_config(disable=True)
    judge = judge_of("", model.catalogue)
    serving = [name for name, method in methods().items() if issubclass(DiffusionTask, method.task)]
    names = ["base", *BASELINES, *serving]
    for concept in CONCEPTS:
        missing = [name for name in names if (concept, name) not in LEDGER]
        task = prepared(model, concept) if missing else None
        for name in missing:
            LEDGER[concept, name] = run_row(name, model, judge, task, concept)
            print(concept, name, LEDGER[concept, name], flush=True)
    print(table(names))


if __name__ == "__main__":
    main()
