"""Relearning: how many steps of finetuning bring the concept back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target, denoising_loss
from erase.core.names import named_parameters
from erase.core.precision import MasterWeights
from erase.core.seeds import seeded
from erase.evaluate.reports import area_under
from erase.support.config import Config, Positive
from erase.support.progress import Bar
from erase.training.preserve import restored_parameters


@dataclass(frozen=True)
class RelearningConfig(Config):
    """Finetuning of the denoiser.

    Args:
        steps: optimizer steps in all.
        every: steps between two looks.
        batch_size: pictures of a step.
        learning_rate: AdamW's.
    """

    steps: Positive[int] = 40
    every: Positive[int] = 10
    batch_size: Positive[int] = 8
    learning_rate: Positive[float] = 1e-4


@register("relearning", RelearningConfig)
def relearning(target: Target, config: RelearningConfig) -> Outcome:
    """Finetune on the concept's pictures under their prompts, look, and put the weights back.

    details: `curve` holds the share of hits after so many steps, `area` is the area under it, as a
    share of all steps at 1; the hits are those at the end.
    """
    return _finetuned(target, config, [prompt.text for prompt in target.prompts], target.latents)


@register("benign_relearning", RelearningConfig)
def benign_relearning(target: Target, config: RelearningConfig) -> Outcome:
    """Relearning on what was never forgotten, as a user finetunes a model for something else."""
    return _finetuned(target, config, target.benign[0], target.benign_latents)


def _finetuned(
    target: Target, config: RelearningConfig, texts: Sequence[str], latents: Tensor
) -> Outcome:
    family, modules = target.denoiser.family, target.denoiser.modules
    denoisers = {name: modules[name] for name in (family.denoiser, *family.others)}
    weights = named_parameters(denoisers)
    generator, masters = seeded(target.seed), MasterWeights(weights)
    learnt = masters.tensors.values()
    optimizer = torch.optim.AdamW(learnt, config.learning_rate, weight_decay=0.0)
    curve = {0: sum(target.plain_hits) / len(target.plain_hits)}
    with target.training_only(weights), restored_parameters(weights):
        for step in Bar(range(1, config.steps + 1), desc="relearning", unit="step"):
            loss = denoising_loss(target, texts, config.batch_size, generator, latents)
            optimizer.zero_grad()
            masters.backward(loss)
            optimizer.step()
            masters.write_back()
            if step % config.every == 0 or step == config.steps:
                pictures = target.drawn(description="relearning")
                curve[step] = sum(target.shows(pictures, target.prompts)) / len(target.prompts)
    passes = config.steps * config.batch_size + (len(curve) - 1) * target.drawing_passes
    return target.outcome(pictures, passes, curve=curve, area=area_under(curve))
