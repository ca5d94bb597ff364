"""SalUn: finetune only the weights that the forget loss pulls on most."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from erase.core.delta import difference
from erase.core.mask import Selection, build_mask
from erase.core.saliency import accumulate
from erase.erasure import Erasure
from erase.methods import register
from erase.tasks.base import Batch, Task
from erase.training import TrainingConfig, preserved, step_seed, train


@dataclass(frozen=True)
class SalUnConfig:
    """Saliency mask, teacher and training of SalUn.

    Args:
        density: share of the weights that may change.
        mask: "top" is SalUn's; the others are its controls.
        teacher: "frozen" takes both the wrong answers and the retained ones from the base as it
            was; "current" is the paper's: wrong answers of the model as it is, and its own
            training loss on the retain set.
        retain_weight: weight of the retain set's loss, the paper's alpha.
        training: the optimizer's settings.
    """

    density: float = 0.5
    mask: Selection = "top"
    teacher: Literal["frozen", "current"] = "frozen"
    retain_weight: float = 1.0
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}; give a share of the weights in (0, 1].")


@register("salun", SalUnConfig)
def salun(task: Task, config: SalUnConfig) -> Erasure:
    """Saliency-masked relabelling (SalUn; Fan et al., ICLR 2024, eqs. 4 to 6).

    The task's own weights are left as they were, bit for bit.
    """
    parameters = task.parameters()
    with preserved(task) as before:
        batches = task.forget_batches(step_seed(task.seed, -1))
        scores = accumulate(parameters, (task.saliency_loss(batch) for batch in batches))
        mask = build_mask(scores, config.density, config.mask, task.seed)
        teacher = task.frozen_copy() if config.teacher == "frozen" else None

        def step_loss(forget: Batch, retain: Batch) -> Tensor:
            kept = task.divergence(retain, teacher) if teacher else task.loss(retain)
            return task.redirected_loss(forget, teacher) + config.retain_weight * kept

        train(task, step_loss, config.training, mask)
        deltas = difference(before, parameters, mask)
    return Erasure(deltas, {"mask": {"kept": mask.kept, "of": mask.total}})
