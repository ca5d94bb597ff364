"""What may be seen of a training while it goes on: losses in a tracker, pictures in a folder."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator, DistributedType
from accelerate.utils import parse_flag_from_env
from diffusers import ModelMixin

from erase.support.distributed import launched, shards_asked
from erase.support.files import check_holds_files
from erase.support.pictures import save_grid
from erase.tasks.base import DrawingTask, Task
from erase.training.config import TrainingConfig

LAUNCHED_IN = "ACCELERATE_MIXED_PRECISION"  # what accelerate's launcher was given
ENGINES = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def require_runnable(config: TrainingConfig, task: type) -> None:
    """Raise ValueError for what this machine, launch or kind of task cannot do of a training."""
    kind = launched().distributed_type
    if kind in ENGINES:
        raise ValueError(
            f"This launch brings an engine of its own ({kind}), under which weights cannot be "
            "masked; launch with distributed_type FSDP, or MULTI_GPU."
        )
    if (asked := os.environ.get(LAUNCHED_IN, "no")) not in ("no", config.mixed_precision):
        raise ValueError(
            f"The launch asks for mixed_precision {asked} and the method's training for "
            f"{config.mixed_precision}, which counts; give METHOD.training.mixed_precision "
            "the same, or launch with mixed_precision no."
        )
    if shards_asked() and parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ValueError(
            "Shards cannot wait on the CPU here; launch with fsdp_offload_params: false."
        )
    if shards_asked() and (config.use_8bit_adam or config.validation_steps):
        raise ValueError(
            "Weights in shards are neither drawn with nor trained by 8-bit Adam; leave out "
            "validation_steps and use_8bit_adam, or launch with distributed_type MULTI_GPU."
        )
    if config.use_8bit_adam and config.optimizer == "sgd":
        raise ValueError("use_8bit_adam is no SGD; leave it out, or choose the optimizer adamw.")
    needed = {"use_8bit_adam": "bitsandbytes", "report_to": config.report_to}
    for option, package in needed.items():
        if getattr(config, option) and importlib.util.find_spec(package) is None:
            raise ValueError(f"{option} needs {package}, which is not installed; install it, or "
                             "leave it out.")  # fmt: skip
    if config.validation_steps and not issubclass(task, DrawingTask):
        raise ValueError("A classifier draws nothing to look at; leave validation_steps at 0.")
    if config.validation_steps or config.report_to == "tensorboard":
        check_holds_files(Path(config.logging_dir))


class TrainingLog:
    """Logs a training of a task as its config asks; the first process alone writes."""

    def __init__(self, task: Task, config: TrainingConfig):
        require_runnable(config, type(task))
        self._config = config
        self.accelerator = Accelerator(
            log_with=config.report_to or None, project_dir=config.logging_dir
        )
        self._preview = task.preview if isinstance(task, DrawingTask) else None
        if config.report_to:
            self.accelerator.init_trackers("erase")

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """After so many steps."""
        config = self._config
        if config.report_to:
            self.accelerator.log(dict(figures), step=done)
        looking = config.validation_steps and done % config.validation_steps == 0
        if looking and self._preview and self.accelerator.is_main_process:
            pictures = self._preview()
            folder = Path(config.logging_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_grid(pictures, folder / f"validation-{done}.png", len(pictures) // 2)

    def end(self) -> None:
        """Close the tracker; `end_training` would part the processes too."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


@contextmanager
def checkpointed_activations(task: Task, wanted: bool) -> Iterator[None]:
    """While in force, the task's modules that can compute their activations anew do so."""
    modules = (*task.components.values(), *task.frozen.values())
    able = [
        module for module in modules
        if wanted and isinstance(module, ModelMixin) and not module.is_gradient_checkpointing
    ]  # fmt: skip
    try:
        for module in able:
            module.enable_gradient_checkpointing()
        yield
    finally:
        for module in able:
            module.disable_gradient_checkpointing()
