"""What may be seen of a training while it goes on: losses in a tracker, pictures in a folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator, DistributedType
from torch import nn

from erase.pictures import save_grid
from erase.tasks.base import Task
from erase.training_config import TrainingConfig

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Watch:
    """Logs a training of a task as its config asks; the first process alone writes."""

    def __init__(self, task: Task, config: TrainingConfig):
        self._task, self._config = task, config
        self.accelerator = Accelerator(
            log_with=config.report_to or None, project_dir=config.logging_dir
        )
        if self.accelerator.distributed_type in SHARDED:
            raise ValueError(
                f"This launch shards the weights ({self.accelerator.distributed_type}), and masks "
                "are of whole tensors; launch with distributed_type MULTI_GPU."
            )
        if config.report_to:
            self.accelerator.init_trackers("erase")

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """After so many steps."""
        config = self._config
        if config.report_to:
            self.accelerator.log(dict(figures), step=done)
        looking = config.validation_steps and done % config.validation_steps == 0
        if looking and self.accelerator.is_main_process:
            pictures = self._task.preview()
            folder = Path(config.logging_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_grid(pictures, folder / f"validation-{done}.png", len(pictures) // 2)

    def end(self) -> None:
        """Close the tracker."""
        if self._config.report_to:
            self.accelerator.end_training()


@contextmanager
def checkpointed_activations(modules: Mapping[str, nn.Module], wanted: bool) -> Iterator[None]:
    """While in force, modules that can compute their activations anew, instead of keeping them."""
    able = [m for m in modules.values() if wanted and hasattr(m, "enable_gradient_checkpointing")]
    try:
        for module in able:
            module.enable_gradient_checkpointing()
        yield
    finally:
        for module in able:
            module.disable_gradient_checkpointing()
