"""The one training loop: forget and retain batches under a mask, resumable, any process count."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from erase.checkpoint import load_checkpoint, save_checkpoint
from erase.checks import require_positive
from erase.core.delta import Delta, NotFiniteError, difference
from erase.core.fingerprint import combined, fingerprint
from erase.core.mask import Mask
from erase.core.masked_update import MaskedUpdate, SoftThreshold
from erase.preserve import only_trainable, preserved
from erase.tasks.base import Batch, Task

logger = logging.getLogger(__name__)
StepLoss = Callable[[Batch, Batch, float], Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """AdamW's settings and where to go on from.

    Args:
        steps: optimizer steps, each on a batch of the forget and one of the retain set; 0 is what
            the task suggests for its model.
        learning_rate: AdamW's, at the first step; 0 is what the task suggests for its model.
        learning_rate_schedule: "linear" falls to zero at the last step.
        weight_decay: AdamW's; masked-out weights are safe from it.
        max_gradient_norm: clips the norm of all masked gradients together.
        mixed_precision: autocast of the losses.
        checkpoint_every: steps between two checkpoints.
        checkpoints: folder of the resumable state; `erase run` sets it, empty keeps none.
    """

    steps: int = 0
    learning_rate: float = 0.0
    learning_rate_schedule: Literal["constant", "linear"] = "linear"
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpoint_every: int = 50
    checkpoints: str = ""

    def __post_init__(self) -> None:
        require_positive(self, "max_gradient_norm", "checkpoint_every")
        for name in ("steps", "learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")


class TrainingStopped(Exception):
    """Training was asked to stop; a checkpoint holds everything done so far."""


def finetune(
    task: Task,
    step_loss: StepLoss,
    config: TrainingConfig,
    mask: Mask | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    sparsity: float = 0.0,
) -> dict[str, Delta]:
    """What `train` does to the parameters, as deltas; the task keeps its weights, bit for bit."""
    chosen = parameters or task.parameters()
    with preserved(chosen) as before, only_trainable(task, chosen):
        train(task, step_loss, config, mask, chosen, sparsity, before)
        return difference(before, chosen, mask)


def train(
    task: Task,
    step_loss: StepLoss,
    config: TrainingConfig,
    mask: Mask | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    sparsity: float = 0.0,
    originals: Mapping[str, Tensor] | None = None,
) -> None:
    """Minimise `step_loss(forget batch, retain batch, progress)` in place over the parameters.

    Progress is the share of the steps done. `parameters` names some of the task's modules' own, if
    not all are to change. `sparsity` is the weight, falling to 0, of an l1 penalty on how far they
    are from `originals`, in steps of the learning rate; these are copies of the parameters as they
    were (which a mask needs them to be), if the caller gives no others.
    Each step's batches depend on the task's seed and the step alone; processes take shards of them
    and average gradients, so that one and two processes agree. Raises NotFiniteError when loss or
    gradients are not finite, ValueError if the checkpoints are another training's, TrainingStopped
    after SIGINT or SIGTERM.
    """
    task.prepare()
    accelerator, known = Accelerator(), task.finetuning
    config = filled(config, known.learning_rate, known.steps)
    parameters = parameters or task.parameters()
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=config.weight_decay, fused=True)
    folder = Path(config.checkpoints) if config.checkpoints else None
    if originals is None:
        originals = {name: p.detach().clone() for name, p in parameters.items()}
    shrink = SoftThreshold(parameters, originals)
    made_for = _made_for(task, step_loss, config, mask, parameters, sparsity) if folder else ""
    first = load_checkpoint(folder, made_for, task.components, optimizer) if folder else 0
    masked = MaskedUpdate(optimizer, parameters, mask, originals) if mask else nullcontext()
    with masked, _stop_requested() as stop:
        for step in _progress(first, config.steps, accelerator):
            rate = config.learning_rate * _share_left(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            _step(task, step_loss, accelerator, optimizer, config, step)
            if sparsity:
                shrink.step(rate * sparsity * (1 - step / config.steps))
            stopping = _on_any_process(stop.is_set(), accelerator)
            due = (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps
            if folder and accelerator.is_main_process and (due or stopping):
                save_checkpoint(folder, made_for, step + 1, task.components, optimizer)
            if stopping:
                raise TrainingStopped(_stop_message(step + 1, config))


def _made_for(
    task: Task,
    step_loss: StepLoss,
    config: TrainingConfig,
    mask: Mask | None,
    parameters: Mapping[str, nn.Parameter],
    sparsity: float,
) -> str:
    """What tells this training's checkpoints from another's, but for what `step_loss` holds."""
    same_anywhere = replace(config, checkpoints="", checkpoint_every=1)
    masks = mask.tensors.values() if mask else ()
    facts = [task.seed, task.describe(), sparsity, same_anywhere]
    parts = [*task.fingerprints().values(), *map(fingerprint, masks), *parameters]
    parts += [str(fact) for fact in facts]
    return combined([*parts, step_loss.__module__, step_loss.__qualname__])


def filled(config: TrainingConfig, learning_rate: float, steps: int) -> TrainingConfig:
    """The config with these settings where it leaves them open."""
    return replace(
        config, learning_rate=config.learning_rate or learning_rate, steps=config.steps or steps
    )


def _step(
    task: Task,
    step_loss: StepLoss,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    step: int,
) -> None:
    seed = step_seed(task.seed, step)
    rank, world = accelerator.process_index, accelerator.num_processes
    forget = _share_of(next(iter(task.forget_batches(seed))), rank, world)
    retain = _share_of(next(iter(task.retain_batches(seed + 1))), rank, world)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        loss = step_loss(forget, retain, step / config.steps)
    if _on_any_process(not loss.isfinite(), accelerator):
        raise NotFiniteError(f"The loss is {loss.item()} at step {step}; lower learning_rate.")
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    _average_gradients(parameters, accelerator)
    norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
    if not norm.isfinite():
        raise NotFiniteError(f"The gradient is {norm.item()} at step {step}; lower learning_rate.")
    optimizer.step()


def _share_of(batch: Batch, rank: int, world: int) -> Batch:
    # Uneven shares would weigh some samples more than one process does.
    if len(batch) % world:
        raise ValueError(
            f"A batch of {len(batch)} cannot be shared evenly by {world} processes; give "
            "batch_size and the number of pictures multiples of it."
        )
    return batch.shard(rank, world)


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")


def _on_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """The flag of all processes together, so that they stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


def step_seed(seed: int, step: int) -> int:
    """A seed for one step; even, so that its successor is free for a second stream."""
    return (seed + 1) * 10_000_000 + 2 * step


def _share_left(config: TrainingConfig, step: int) -> float:
    return 1 - step / config.steps if config.learning_rate_schedule == "linear" else 1.0


def _progress(first: int, steps: int, accelerator: Accelerator) -> Iterator[int]:
    if first:
        logger.warning("Going on from step %d of %d.", first, steps)
    return tqdm(
        range(first, steps),
        initial=first,
        total=steps,
        desc="erasing",
        unit="step",
        disable=not accelerator.is_main_process,
    )


def _stop_message(steps_done: int, config: TrainingConfig) -> str:
    kept = "run the same again to go on" if config.checkpoints else "no checkpoint was asked for"
    return f"Stopped after step {steps_done} of {config.steps}; {kept}."


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step always ends whole."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
