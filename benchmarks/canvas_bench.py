"""What every row of the EmojiCanvas bench is measured with, and erasing with it."""

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from emoji.canvas import EmojiCanvas, Placement
from fair_settings import tuned
from observation import CaptionedPictures, Observation

from erase.attacks.base import Target
from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.methods import methods, preset_of
from erase.models.opening import Model, load_model
from erase.prompts.catalogue import Catalogue, Concept
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.runs.attack import build_target
from erase.tasks.diffusion.task import DiffusionTask

REAL_SEED, REAL_PICTURES, ATTACKED = 0, 64, 16
TUNED = "tuned"


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row is measured with."""

    asked: Sequence[Sequence[str]]  # what is erased at once, then what next
    concepts: Sequence[Concept]
    model: Model
    judge: Judge
    prompts: PromptSet
    real: dict[str, CaptionedPictures]
    oracle: Observation | None
    attacks: Sequence[str]
    attack_seeds: Sequence[int]
    every: int
    mixed_precision: str

    def precision(self) -> torch.autocast:
        """What everything but the judge runs in."""
        return bfloat16(self.mixed_precision == "bf16")


def bfloat16(enabled: bool = True) -> torch.autocast:
    """Autocast without remembered casts: the weights change while it is in force."""
    return torch.autocast("cpu", torch.bfloat16, enabled, cache_enabled=False)


def opened(name: str, mixed_precision: str) -> Model:
    """A model that draws as fast as a CPU can."""
    model = load_model(name)
    pipeline = model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)
    if mixed_precision == "bf16":  # PyTorch's own attention is slow in it
        pipeline.unet.set_attn_processor(AttnProcessor())
    return model


def real_pictures(
    concepts: Sequence[Concept], catalogue: Catalogue
) -> dict[str, CaptionedPictures]:
    """Drawings by people of the concepts, and as many at most of what is retained."""
    canvas = EmojiCanvas(catalogue.objects, catalogue.styles)
    order = torch.randperm(len(canvas), generator=torch.Generator().manual_seed(REAL_SEED))
    own = [
        any(getattr(canvas.cells[i], concept.kind) == concept.name for concept in concepts)
        for i in order.tolist()
    ]
    sides = {}
    for side, wanted in (("forget", True), ("retain", False)):
        chosen = order[[i for i, mine in enumerate(own) if mine == wanted][:REAL_PICTURES]]
        count = len(chosen)
        placement = Placement(
            torch.full((count,), 0.92), torch.zeros(count, 2), torch.ones(count, 3)
        )
        captions = [catalogue.prompt(canvas.cells[i].object, canvas.cells[i].style) for i in chosen]
        sides[side] = CaptionedPictures(canvas.render(chosen, placement), captions)
    return sides


@cache
def target_of(bench: Bench, seed: int) -> Target:
    """What attacks are shown, drawn by the base: ask before any erasure is applied."""
    model = bench.model
    with bench.precision():
        return build_target(model.pipeline, model, bench.prompts, bench.judge, ATTACKED, seed)


@contextmanager
def in_force(
    erasures: Sequence[Erasure], pipeline: StableDiffusionPipeline, scale: float = 1.0
) -> Iterator[None]:
    """While it lasts, the erasures are applied, one after the other."""
    with ExitStack() as applied:
        for erasure in erasures:
            applied.enter_context(erasure.apply(pipeline.components, scale))
        yield


def erased(
    bench: Bench, method: str, adversary: int, seed: int, preset: str = "ours"
) -> tuple[list[Erasure], float]:
    """The method's erasure of every part of what is asked, and the seconds of the method alone."""
    erasures, seconds = [], 0.0
    for asked in bench.asked:
        with in_force(erasures, bench.model.pipeline):
            task = copy.copy((task_of if erasures else first_task)(bench, tuple(asked), seed))
            task.config = dataclasses.replace(task.config, adversary_steps=adversary)
            config = config_of(bench, task, method, preset)
            if hasattr(config, "training"):
                with bench.precision():
                    task.with_redirection_pictures().prepare()
            started = time.perf_counter()
            erasure = methods()[method](task, config)
            seconds += time.perf_counter() - started
        erasures.append(erasure)
    return erasures, seconds


def config_of(bench: Bench, task: DiffusionTask, method: str, preset: str) -> Any:
    """A preset, or what fair.py found to be best for the method, in the bench's precision."""
    config = tuned(method, task) if preset == TUNED else preset_of(method, preset)
    if not hasattr(config, "training"):
        return config
    training = dataclasses.replace(config.training, mixed_precision=bench.mixed_precision)
    return dataclasses.replace(config, training=training)


def task_of(bench: Bench, asked: tuple[str, ...], seed: int) -> DiffusionTask:
    """Erasing these concepts from the pipeline as it is."""
    model, prompts = bench.model, expand(EraseRequest(asked), bench.model.catalogue)
    return DiffusionTask(
        model.pipeline,
        prompts,
        model.sampling,
        seed=seed,
        finetuning=model.finetuning(prompts),
    )


first_task = cache(task_of)  # of the base, so that all methods of a seed can share its pictures
