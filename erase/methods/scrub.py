"""SCRUB: stay with the teacher on the retain set, leave it on the forget set."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register, usual_training
from erase.support.config import NotNegative, Positive
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import finetune
from erase.training.turns import turns_of


@dataclass(frozen=True)
class ScrubConfig(TrainedConfig):
    """The balance of leaving and staying.

    Args:
        leaving_share: share of the steps, the first ones, that also leave the teacher.
        leaving_weight: weight of the forget set's distance from it.
        loss_weight: weight of the retain set's own loss, the paper's gamma.
        staying_weight: weight of the retain set's distance, the paper's alpha.
        temperature: what both answers are softened by; a diffusion model's have none.
        leaving_epochs: how many of the first epochs are a pass of leaving alone, then one of
            staying, as in the paper's code; every later step stays. 0 has early steps do both.
    """

    leaving_share: float = 0.6
    leaving_weight: float = 1.0
    loss_weight: float = 1.0
    staying_weight: float = 0.5
    temperature: Positive[float] = 1.0
    leaving_epochs: NotNegative[int] = 0


PUBLISHED = ScrubConfig(
    loss_weight=0.99, staying_weight=0.001, temperature=4.0, leaving_epochs=2,
    training=published_sgd(5e-4),
)  # fmt: skip


@register("scrub", ScrubConfig, needs=holding(teachers=1), published=PUBLISHED)
def scrub(task: TrainedTask, config: ScrubConfig) -> Erasure:
    """Teacher and disobedient student (Kurmanji et al., NeurIPS 2023).

    By default every early step leaves and stays; answers are not softened. The preset published is
    their code's large runs, where two epochs of three leave first; but each step's batch is drawn
    anew, of one size for both sets (theirs are 32 and 128), and three epochs are asked for as
    max_train_steps. Their small runs leave in 3 of 10 epochs at a temperature of 2, with Adam,
    whose rate falls tenfold after epochs 5, 8 and 9 and whose decay of .1 is in the gradient.
    """
    base, turns = task.frozen_copy(), None
    if config.leaving_epochs:
        turns = turns_of(task, usual_training(task, config).max_train_steps)

    def kept(retain: Batch) -> Tensor:
        distance = task.divergence(retain, base, config.temperature)
        return config.loss_weight * task.loss(retain) + config.staying_weight * distance

    def left(forget: Batch) -> Tensor:
        return -config.leaving_weight * task.divergence(forget, base, config.temperature)

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        if turns:
            leaving = turns.forgets(progress, config.leaving_epochs)
            return left(forget) if leaving else kept(retain)
        early = progress < config.leaving_share
        return kept(retain) + left(forget) if early else kept(retain)

    return Erasure(finetune(task, step_loss, config.training))
