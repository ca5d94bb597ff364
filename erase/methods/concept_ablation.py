"""Concept ablation: the forget prompts come to draw the anchor concept's pictures."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.methods.salun import Teacher
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig, TrainingConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class ConceptAblationConfig(TrainedConfig):
    """Anchor distillation.

    Args:
        retain_weight: weight of staying close to the base on the retain set.
        teacher: who answers for the anchor, the base or the model as it is.
    """

    retain_weight: float = 1.0
    teacher: Teacher = "frozen"


PUBLISHED = ConceptAblationConfig(
    0.0, "current", training=TrainingConfig(100, 8e-6, "constant", adam_weight_decay=1e-2)
)


@register("concept_ablation", ConceptAblationConfig, DiffusionTask, holding(teachers=1), PUBLISHED)
def concept_ablation(task: DiffusionTask, config: ConceptAblationConfig) -> Erasure:
    """Match the forget prompt's prediction to the anchor's on the anchor's own pictures.

    The model-based objective of Kumari et al., ICCV 2023, but with the base as the teacher, where
    theirs is the model as it is, and the base's answers on the retain set to hold the rest. The
    preset published has neither; its rate is theirs for a batch of 4 on one GPU (2e-6 times 4).
    They train the keys and values of the UNet's cross-attention alone (`--task.include
    '["*attn2.to_k*", "*attn2.to_v*"]'`) on pictures of many anchor prompts, flipped.
    """
    base = task.frozen_copy()

    def step_loss(pictures: DiffusionBatch, retain: DiffusionBatch, progress: float) -> Tensor:
        loss = task.redirected_loss(pictures, base if config.teacher == "frozen" else None)
        if config.retain_weight:
            loss = loss + config.retain_weight * task.divergence(retain, base)
        return loss

    return Erasure(finetune(task.with_anchor_pictures(), step_loss, config.training))
