"""DELETE: keep what the model knows of the other classes, without any retain set."""

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@register("delete", TrainedConfig, ClassificationTask, holding(teachers=1))
def delete(task: ClassificationTask, config: TrainedConfig) -> Erasure:
    """Distil the base's answers on the forget set less the true class (Zhou et al., CVPR 2025).

    The cross-entropy has the gradient of their divergence; AdamW, where their code has SGD.
    """
    base = task.frozen_copy()

    def step_loss(forget: ClassificationBatch, *_: object) -> Tensor:
        with torch.no_grad():
            logits = base.predict(forget.inputs)
            wanted = logits.scatter(1, forget.labels[:, None], -torch.inf).softmax(1)
        return F.cross_entropy(task.predict(forget.inputs), wanted)

    return Erasure(finetune(task, step_loss, config.training))
