"""SalUn: finetune only the weights that the forget loss pulls on most."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from erase.core.fingerprint import combined
from erase.core.mask import Mask, Scope, Selection, build_mask
from erase.core.saliency import Estimator, accumulate, fisher_ratio
from erase.erasure.erasure import Erasure
from erase.erasure.weights import read_mask, write_mask
from erase.methods import Needs, register, usual_training
from erase.support.config import Within, require_kind
from erase.support.distributed import all_reduce_sum, launched, shard_of
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import UNCLIPPED, TrainedConfig
from erase.training.loop import StepLoss, TrainingConfig, finetune, step_seed, with_defaults
from erase.training.preserve import only_trainable
from erase.training.watch import checkpointed_activations

Teacher = Literal["frozen", "current"]
MaskEstimator = Literal[Estimator, "fisher_ratio"]
Density = Annotated[
    float, Within(lambda density: 0 < density <= 1, "a share of the weights in (0, 1]")
]
MASK = 1  # byte a weight


@dataclass(frozen=True)
class RelabellingConfig(TrainedConfig):
    """Teacher and training of SalUn and its kin.

    Args:
        teacher: what teaches the wrong answers. "frozen" is a copy of the base, which holds the
            retain set too. "current", the paper's, is the model as it is now; the retain set has
            the usual loss. Either way the forget prompts come with pictures of the concept and of
            the anchor; in the paper, as in random_label, with the concept's alone.
        retain_weight: weight of the retain set's loss, the paper's alpha; by default 1 with the
            current teacher, and with a frozen one what the task suggests.
        training: the optimizer's settings; what is 0 is, with a frozen teacher, what the task
            suggests for a model that is held in place.
    """

    teacher: Teacher = field(default="frozen", kw_only=True)
    retain_weight: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SalUnConfig(RelabellingConfig):
    """The saliency mask of SalUn.

    Args:
        density: share of the weights that may change.
        mask: "top" is SalUn's; the others are its controls.
        scope: whether the share holds over all weights together or within each tensor.
        estimator: what a weight's saliency is; "signed_sum" is SalUn's.
        mask_file: a mask to use again; if there is no such file, where to write this one.
        pictures: what the forget prompts come with: pictures of the concept and of the anchor, or
            of the concept alone. Classifiers have but their samples.
    """

    density: Density = 0.5
    mask: Selection = "top"
    scope: Scope = "global"
    estimator: MaskEstimator = "signed_sum"
    mask_file: str = ""
    pictures: Literal["both", "concept"] = "both"


PUBLISHED = SalUnConfig(
    pictures="concept", teacher="current", retain_weight=0.1,
    training=TrainingConfig(0, 1e-5, "constant", max_grad_norm=UNCLIPPED),
)  # fmt: skip


def relabelling_needs(task: TrainedTask, config: RelabellingConfig) -> Needs:
    """A frozen teacher holds what is trained as it was."""
    teachers = int(config.teacher == "frozen")
    return Needs(task.parameters(), settings_for_teacher(task, config), teachers=teachers)


def _needs(task: TrainedTask, config: SalUnConfig) -> Needs:
    needs = relabelling_needs(task, config)
    count = sum(parameter.numel() for parameter in needs.trained.values())
    kept = count if config.mask == "none" else int(count * config.density)
    return replace(needs, extra_per_weight=MASK, kept=kept)


@register("salun", SalUnConfig, needs=_needs, published=PUBLISHED)
def salun(task: TrainedTask, config: SalUnConfig) -> Erasure:
    """Saliency-masked relabelling (SalUn; Fan et al., ICLR 2024, eqs. 4 to 6).

    The task's own weights are left as they were, bit for bit. The preset published is the authors'
    code for pictures; differences of our defaults: a frozen teacher also holds the retain set, the
    anchor's pictures are learnt from too, and only what reads the text changes (they mask the whole
    UNet: `--task.components '["unet"]' --task.include '["*"]'`); the mask's guidance is the model's
    own, theirs 7.5. Theirs runs 5 epochs of the forget set, we count steps; they clip nothing.

    For classifiers they take SGD (.013, momentum .9, weight decay 5e-4) in training mode, an epoch
    of wrong labels, the true one among those drawn, then one of the retain set, with weight 1; we
    AdamW on both at once, in evaluation mode, and never draw the true label. Ties in the mask are
    broken by position, theirs by an unstable sort.
    """
    mask, facts = _mask_of(task, config)
    loss = relabelling_loss(task, config.teacher, config.retain_weight)
    training = settings_for_teacher(task, config)
    shown = task.with_redirection_pictures() if config.pictures == "both" else task
    return Erasure(finetune(shown, loss, training, mask), {"mask": facts})


def relabelling_loss(
    task: TrainedTask,
    teacher: Teacher,
    retain_weight: float | None = None,
    trained: Mapping[str, nn.Parameter] | None = None,
) -> StepLoss:
    """SalUn's objective: a wrong answer for the forget batch, the usual one for the retained.

    trained: what is to change, if it is not the task's own.
    """
    require_kind("teacher", teacher, Teacher)
    base = task.frozen_copy(trained) if teacher == "frozen" else None
    suggested = task.finetuning.retain_weight if base else 1.0
    weight = suggested if retain_weight is None else retain_weight

    def loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        kept = task.divergence(retain, base) if base else task.loss(retain)
        return task.redirected_loss(forget, base) + weight * kept

    return loss


def settings_for_teacher(task: TrainedTask, config: RelabellingConfig) -> TrainingConfig:
    """The training with the rate and steps that the teacher allows, where it leaves them open."""
    known = task.finetuning
    if config.teacher == "current":
        return usual_training(task, config)
    return with_defaults(config.training, known.anchored_rate, known.anchored_steps)


def saliency(task: TrainedTask, estimator: MaskEstimator) -> dict[str, Tensor]:
    """Every editable weight's saliency on the forget set; "fisher_ratio" sees both sets."""
    parameters, seed = task.parameters(), step_seed(task.seed, -1)
    one_set = "fisher" if estimator == "fisher_ratio" else estimator
    with only_trainable(task, parameters):
        losses = (task.saliency_loss(batch) for batch in shard_of(task.forget_batches(seed)))
        forget = accumulate(parameters, losses, one_set, all_reduce_sum)
        if estimator != "fisher_ratio":
            return forget
        losses = (task.saliency_loss(batch) for batch in shard_of(task.retain_batches(seed + 1)))
        return fisher_ratio(forget, accumulate(parameters, losses, one_set, all_reduce_sum))


def _mask_of(task: TrainedTask, config: SalUnConfig) -> tuple[Mask, dict[str, Any]]:
    """The mask, read or made, and what the recipe says of it."""
    path = Path(config.mask_file) if config.mask_file else None
    options = (config.mask, config.density, config.scope, config.estimator, task.seed)
    made_for = task.fingerprints() | {
        "choice of weights": " ".join(map(str, options)),
        "set of tensors": combined(task.parameters()),
    }
    if config.estimator != "fisher_ratio":  # the others never see the retain set
        del made_for["retain set"]
    if path and path.exists():
        mask = read_mask(path, made_for, task.parameters())
        return mask, _facts(mask, {})
    if path and not path.parent.is_dir():
        raise ValueError(f"The folder of the mask file {path} is not there; make it first.")
    task.prepare()
    with checkpointed_activations(task, config.training.gradient_checkpointing):
        scores = saliency(task, config.estimator)
    mask = build_mask(scores, config.density, config.mask, task.seed, config.scope)
    if not mask.kept:
        raise ValueError(f"density {config.density} keeps none of {mask.total} weights; raise it.")
    if path and launched().is_main_process:
        write_mask(mask, path, made_for)
    return mask, _facts(mask, scores)


def _facts(mask: Mask, scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts, in all and by layer, and each layer's share of the saliency where it is known."""
    sums = {name: float(score.cpu().double().sum()) for name, score in scores.items()}
    total = sum(sums.values()) or 1.0
    layers: dict[str, dict[str, float]] = {
        name: {"kept": int(kept.sum()), "of": kept.numel()} for name, kept in mask.tensors.items()
    }
    for name, of_layer in sums.items():
        layers[name]["saliency_share"] = round(of_layer / total, 6)
    return {"kept": mask.kept, "of": mask.total, "layers": layers}
