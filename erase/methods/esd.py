"""ESD: steer predictions for the concept to where guidance would push away from it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.names import filter_names
from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import UNCLIPPED, TrainedConfig, TrainingConfig
from erase.training.loop import finetune

Variant = Literal["x", "x_strict", "u", "all"]


@dataclass(frozen=True)
class ESDConfig(TrainedConfig):
    """Which weights ESD trains, and how far away it steers.

    Args:
        variant: "x" trains the attention to text, "x_strict" its keys and values of text alone,
            "u" all of the denoiser but that attention, "all" whatever the task lets change.
        guidance: how many times the concept's direction is taken off.
        retain_weight: weight of staying close to the base on the retain set; ESD has none.
        origin: the prediction it is taken off: the anchor's, the concept's own, or nothing's.
        layers: "linear" trains but linear layers and convolutions of the denoiser.
    """

    variant: Variant = "x"
    guidance: float = 1.0
    retain_weight: float = 0.0
    origin: Literal["anchor", "concept", "nothing"] = "anchor"
    layers: Literal["all", "linear"] = "all"


PUBLISHED = ESDConfig(
    "x", 2.0, 0.0, "concept", "linear",
    training=TrainingConfig(200, 5e-5, "constant", max_grad_norm=UNCLIPPED),
)  # fmt: skip


def _needs(task: DiffusionTask, config: ESDConfig) -> Needs:
    return Needs(_part(task, config), usual_training(task, config), teachers=1)


@register("esd", ESDConfig, DiffusionTask, _needs, PUBLISHED)
def esd(task: DiffusionTask, config: ESDConfig) -> Erasure:
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023).

    The target is e0(x, anchor) - guidance * (e0(x, prompt) - e0(x, "")), e0 being the base. The
    paper's has "" for the anchor, its eta is our guidance; the authors' code, which the preset
    published follows, has the concept itself, and a guidance of 2 (1 then gives the paper's).

    Other differences: x is the base's own pictures of the concept, noised at uniform time steps. In
    their code (25613d2) x is where the base's guided sampling (scale 3) stands at one of 50 steps,
    one sample an iteration; in the paper and its first code the model being erased samples. We
    train norms with "u" and "all", and text encoders with "all", they linear layers and
    convolutions of the UNet alone. Asked to erase from another concept they train the prediction
    for that one, we the concept's.
    """
    chosen = _part(task, config)
    base = task.frozen_copy(chosen)

    def step_loss(forget: DiffusionBatch, retain: DiffusionBatch, progress: float) -> Tensor:
        learnt = task.training_prediction(forget, base)
        loss = F.mse_loss(learnt, target(base, forget, config))
        if config.retain_weight:
            loss = loss + config.retain_weight * task.divergence(retain, base)
        return loss

    return Erasure(finetune(task, step_loss, config.training, parameters=chosen))


@torch.no_grad()
def target(base: DiffusionTask, forget: DiffusionBatch, config: ESDConfig) -> Tensor:
    """What the concept's prediction is to become: [B, C, h, w]."""
    unprompted = base.predict(forget, [""] * len(forget.prompts))
    direction = base.predict(forget, forget.prompts) - unprompted
    origin = unprompted
    if config.origin != "nothing":
        prompts = forget.anchors if config.origin == "anchor" else forget.prompts
        origin = base.predict(forget, prompts)
    return origin - config.guidance * direction


def _part(task: DiffusionTask, config: ESDConfig) -> dict[str, nn.Parameter]:
    family, variant = task.family, config.variant
    patterns = {
        "x": (family.attention, ()),
        "x_strict": (family.keys_and_values, ()),
        "u": ((f"{family.denoiser}.*",), family.attention),
        "all": (("*",), ()),
    }
    chosen = filter_names(task.editable(), *patterns[variant])
    if config.layers == "linear":
        modules = task.denoiser.modules[family.denoiser].modules()
        layers = (module for module in modules if isinstance(module, (nn.Linear, nn.Conv2d)))
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        chosen = {name: parameter for name, parameter in chosen.items() if id(parameter) in own}
    if not chosen:
        raise ValueError(f"The variant {variant} trains none of {', '.join(task.components)}; "
                         f"let the {family.denoiser} change, or choose variant all.")  # fmt: skip
    return chosen
