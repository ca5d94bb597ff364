"""Concept ablation: the forget prompts come to draw the anchor concept's pictures."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class ConceptAblationConfig(TrainedConfig):
    """Anchor distillation.

    Args:
        retain_weight: weight of staying close to the base on the retain set.
    """

    retain_weight: float = 1.0


@register("concept_ablation", ConceptAblationConfig, DiffusionTask, holding(teachers=1))
def concept_ablation(task: DiffusionTask, config: ConceptAblationConfig) -> Erasure:
    """Match the forget prompt's prediction to the anchor's on the anchor's own pictures.

    The model-based objective of Kumari et al., ICCV 2023, but with the base as the teacher, where
    theirs is the model as it is, and the base's answers on the retain set to hold the rest.
    """
    base = task.frozen_copy()

    def step_loss(pictures: DiffusionBatch, retain: DiffusionBatch, progress: float) -> Tensor:
        distilled = task.redirected_loss(pictures, base)
        return distilled + config.retain_weight * task.divergence(retain, base)

    return Erasure(finetune(task.with_anchor_pictures(), step_loss, config.training))
