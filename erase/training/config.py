"""What every trained method lets one choose, in the words of diffusers' training scripts."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from erase.support.config import Config, NotNegative, Positive, Within

WATCHING = (
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to",
    "validation_steps", "logging_dir",
)  # fmt: skip
UNCLIPPED = 1e9  # a norm that no gradient has


@dataclass(frozen=True)
class TrainingConfig(Config):
    """The optimizer's settings, what is watched, and where to go on from.

    Args:
        max_train_steps: optimizer steps, each on a batch of the forget and one of the retain set;
            0 is what the task suggests for its model.
        learning_rate: at the first step; 0 is what the task suggests for its model.
        lr_scheduler: "linear" falls to zero at the last step.
        adam_weight_decay: AdamW's, or SGD's; masked-out weights are safe from it.
        use_8bit_adam: bitsandbytes' AdamW, where it is installed.
        optimizer: "sgd" is what most authors train classifiers with, at rates of its own.
        momentum: SGD's.
        max_grad_norm: clips the norm of all masked gradients together.
        lr_warmup_steps: the first steps, through which the rate rises to what it would be.
        gradient_accumulation_steps: batches of either set whose gradients make up a step.
        gradient_checkpointing: computes a denoiser's activations anew in the backward pass, which
            takes less memory and more time.
        mixed_precision: autocast of the losses.
        use_ema: ends with the moving average of the weights instead of the last ones.
        ema_decay: the average's decay a step.
        checkpointing_steps: steps between two checkpoints.
        checkpoints_total_limit: how many checkpoints are kept.
        resume_from_checkpoint: "latest" goes on from the newest one, "no" starts anew.
        report_to: a tracker of losses and learning rates, written to logging_dir or sent to wandb.
        validation_steps: steps between two looks at what the model draws; 0 for none.
        logging_dir: folder of the tracker's files and of validation pictures.
    """

    max_train_steps: NotNegative[int] = 0
    learning_rate: NotNegative[float] = 0.0
    lr_scheduler: Literal["constant", "linear"] = "linear"
    adam_weight_decay: NotNegative[float] = 0.0
    use_8bit_adam: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Annotated[float, Within(lambda share: 0 <= share < 1, "a number in [0, 1)")] = 0.9
    max_grad_norm: Positive[float] = 1.0
    lr_warmup_steps: NotNegative[int] = 0
    gradient_accumulation_steps: Positive[int] = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    use_ema: bool = False
    ema_decay: Annotated[float, Within(lambda decay: 0 <= decay < 1, "a number in [0, 1)")] = 0.99
    checkpointing_steps: Positive[int] = 50
    checkpoints_total_limit: Positive[int] = 1
    resume_from_checkpoint: Literal["latest", "no"] = "latest"
    report_to: Literal["", "tensorboard", "wandb"] = ""
    validation_steps: NotNegative[int] = 0
    logging_dir: str = "logs"


def published_sgd(
    learning_rate: float, momentum: float = 0.9, weight_decay: float = 5e-4
) -> TrainingConfig:
    """SGD as the classifier baselines have it: at a constant rate, and nothing is clipped."""
    return TrainingConfig(
        0, learning_rate, "constant", weight_decay,
        optimizer="sgd", momentum=momentum, max_grad_norm=UNCLIPPED,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainedConfig(Config):
    """What every trained method lets one choose.

    Args:
        training: the optimizer's settings.
    """

    keeps: ClassVar[bool] = True  # whether each step is one from the base, which can be held back

    training: TrainingConfig = field(default_factory=TrainingConfig, kw_only=True)


def without_run_state(config: TrainingConfig) -> TrainingConfig:
    """The config with defaults for what only watches: it leaves the numbers as they are."""
    default = TrainingConfig()
    return replace(config, **{name: getattr(default, name) for name in WATCHING})


def with_defaults(config: TrainingConfig, learning_rate: float, steps: int) -> TrainingConfig:
    """The config with these settings where it leaves them open."""
    return replace(
        config,
        learning_rate=config.learning_rate or learning_rate,
        max_train_steps=config.max_train_steps or steps,
    )
