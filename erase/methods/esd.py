"""ESD: steer predictions for the concept to where guidance would push away from it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.patterns import filter_names
from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune

Variant = Literal["x", "x_strict", "u", "all"]


@dataclass(frozen=True)
class ESDConfig(TrainedConfig):
    """Which weights ESD trains, and how far away it steers.

    Args:
        variant: "x" trains the attention to text, "x_strict" its keys and values of text alone,
            "u" all of the denoiser but that attention, "all" whatever the task lets change.
        guidance: how many times the concept's direction is taken off.
        retain_weight: weight of staying close to the base on the retain set; ESD itself has none.
    """

    variant: Variant = "x"
    guidance: float = 1.0
    retain_weight: float = 0.0


def _needs(task: DiffusionTask, config: ESDConfig) -> Needs:
    return Needs(_part(task, config.variant), usual_training(task, config), teachers=1)


@register("esd", ESDConfig, DiffusionTask, _needs)
def esd(task: DiffusionTask, config: ESDConfig) -> Erasure:
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023).

    The target is e0(x, anchor) - guidance * (e0(x, prompt) - e0(x, "")), e0 being the base; the
    paper's own has "" for an anchor. The noisy pictures are the base's own pictures of
    the concept, noised, which have the distribution of half-way samples that ESD draws.
    """
    chosen = _part(task, config.variant)
    base = task.frozen_copy(chosen)

    def step_loss(forget: DiffusionBatch, retain: DiffusionBatch, progress: float) -> Tensor:
        loss = F.mse_loss(task.training_prediction(forget), _target(base, forget, config))
        if config.retain_weight:
            loss = loss + config.retain_weight * task.divergence(retain, base)
        return loss

    return Erasure(finetune(task, step_loss, config.training, parameters=chosen))


@torch.no_grad()
def _target(base: DiffusionTask, forget: DiffusionBatch, config: ESDConfig) -> Tensor:
    unprompted = base.predict(forget, [""] * len(forget.prompts))
    direction = base.predict(forget, forget.prompts) - unprompted
    return base.predict(forget, forget.anchors) - config.guidance * direction


def _part(task: DiffusionTask, variant: Variant) -> dict[str, nn.Parameter]:
    family = task.family
    patterns = {
        "x": (family.attention, ()),
        "x_strict": (family.keys_and_values, ()),
        "u": ((f"{family.denoiser}.*",), family.attention),
        "all": (("*",), ()),
    }
    chosen = filter_names(task.editable(), *patterns[variant])
    if not chosen:
        raise ValueError(f"The variant {variant} trains none of {', '.join(task.components)}; "
                         f"let the {family.denoiser} change, or choose variant all.")  # fmt: skip
    return chosen
