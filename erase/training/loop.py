"""The one training loop: forget and retain batches under a mask, resumable, any process count."""

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Optimizer

from erase.core.delta import Delta, NotFiniteError, deltas_between
from erase.core.fingerprint import combined, fingerprint
from erase.core.mask import Mask
from erase.core.masked_update import masked_update, shrink_changes_
from erase.core.precision import MasterWeights
from erase.core.process import own_settings
from erase.core.shards import full_tensor, in_shards
from erase.support.distributed import all_reduce_sum, shards_asked
from erase.support.progress import Bar
from erase.tasks.base import SomeBatch, StepLoss, Task, TrainedTask
from erase.training.checkpoint import Checkpoints, checkpoint_folder
from erase.training.config import TrainingConfig, with_defaults, without_run_state
from erase.training.keeping import holding
from erase.training.preserve import only_trainable, restored_parameters, sharded
from erase.training.relearning import withstanding
from erase.training.watch import TrainingLog, checkpointed_activations


class TrainingStopped(KeyboardInterrupt):
    """Training was asked to stop; a checkpoint holds everything done so far."""


@own_settings()
def finetune(
    task: TrainedTask[SomeBatch],
    step_loss: StepLoss[SomeBatch],
    config: TrainingConfig,
    mask: Mask | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    sparsity: float = 0.0,
    replicas: bool = False,
) -> dict[str, Delta]:
    """What `train` does to the parameters, as deltas; the task keeps its weights, bit for bit.

    Where the launch asks for shards they lie in shards, unless `replicas`, which a `step_loss` asks
    for that reads weights by itself and not through the task.
    """
    chosen = _chosen(task, parameters)
    # Rounded to float16, a change would move again what no step was to move.
    stored = {"dtype": torch.float32} if task.kept else {}
    if shards_asked() and not replicas:
        task.prepare()
        with sharded(task, chosen) as shards:
            trained = train(task, step_loss, config, mask, shards, sparsity)
            after = {name: full_tensor(one.detach()).cpu() for name, one in trained.items()}
        before = {name: parameter.detach() for name, parameter in chosen.items()}
        return deltas_between(before, after, mask, **stored)
    with restored_parameters(chosen) as before, only_trainable(task, chosen):
        trained = train(task, step_loss, config, mask, chosen, sparsity, before)
        return deltas_between(before, trained, mask, **stored)


@own_settings()
def train(
    task: TrainedTask[SomeBatch],
    step_loss: StepLoss[SomeBatch],
    config: TrainingConfig,
    mask: Mask | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    sparsity: float = 0.0,
    originals: Mapping[str, Tensor] | None = None,
) -> dict[str, nn.Parameter]:
    """Minimise `step_loss(forget batch, retain batch, progress)` in place over the parameters.

    What comes back is the parameters, or the float32 values of half-precision ones. Progress is the
    share of the steps done. `parameters` names some of the task's modules' own, if not all are to
    change. `sparsity` is the weight, falling to 0, of an l1 penalty on how far they are from
    `originals`, in steps of the learning rate; by default copies of them, as a mask needs. Each
    step's batches depend on the task's seed and the step alone; processes take shards of them and
    average gradients. Raises NotFiniteError when loss or gradients are not finite, ValueError for
    no parameters and for checkpoints of another training, TrainingStopped after SIGINT or SIGTERM.
    """
    task.prepare()
    config = with_defaults(config, task.finetuning.learning_rate, task.finetuning.steps)
    watch, chosen = TrainingLog(task, config), _chosen(task, parameters)
    made_for = _made_for(task, step_loss, config, mask, chosen, sparsity)
    step_loss = withstanding(task, step_loss, chosen)
    compared = chosen if mask or sparsity or task.kept else {}
    originals = originals or {name: p.detach().clone() for name, p in compared.items()}
    masters = MasterWeights(chosen, mask.tensors if mask and not task.kept else None)
    parameters, steps = masters.tensors, config.max_train_steps
    hold = holding(task.kept, parameters, originals, mask)
    optimizer = _optimizer(parameters, config)
    average = EMAModel(parameters.values(), config.ema_decay) if config.use_ema else None
    kept = Checkpoints(config, made_for, masters.state, optimizer, average)
    masters.write_back()
    masked = masked_update(optimizer, masters.whole, mask, originals) if mask else nullcontext()
    stepper = _Stepper(task, step_loss, config, watch.accelerator, optimizer, masters)
    able = checkpointed_activations(task, config.gradient_checkpointing)
    left = range(kept.first, steps)
    with masked, able, _stop_requested() as stop:
        for step in Bar(left, initial=kept.first, total=steps, desc="erasing", unit="step"):
            rate, loss = stepper.rate(step), stepper.take(step)
            if sparsity:
                amount = rate * sparsity * (1 - step / steps)
                shrink_changes_(parameters, masters.cut(originals), amount)
            hold()
            masters.write_back()
            if average:
                average.step(parameters.values())
            watch.step(step + 1, {"loss": loss, "learning_rate": rate})
            stopping = stepper.anywhere(stop.is_set())
            if stopping or (step + 1) % config.checkpointing_steps == 0 or step + 1 == steps:
                kept.save(step + 1, watch.accelerator.is_main_process)
            if stopping:
                raise TrainingStopped(_stop_message(step + 1, steps))
    watch.end()
    if average:
        average.copy_to(parameters.values())
        hold()
        masters.write_back()
    optimizer.zero_grad(set_to_none=True)
    return masters.values()


def _chosen(
    task: Task, parameters: Mapping[str, nn.Parameter] | None
) -> Mapping[str, nn.Parameter]:
    """What is to change: all that the task trains, if nobody says; ValueError for none at all."""
    chosen = task.parameters() if parameters is None else parameters
    if not chosen:
        raise ValueError("No tensor is to be trained; choose some, or widen the task's patterns.")
    return chosen


def _optimizer(parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> Optimizer:
    """AdamW, bitsandbytes', or SGD; steps set its rate."""
    tensors, decay = parameters.values(), config.adam_weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(tensors, momentum=config.momentum, weight_decay=decay)
    if not config.use_8bit_adam:
        return torch.optim.AdamW(tensors, weight_decay=decay, fused=True)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(tensors, weight_decay=decay)


def _made_for(
    task: TrainedTask[SomeBatch],
    step_loss: StepLoss[SomeBatch],
    config: TrainingConfig,
    mask: Mask | None,
    parameters: Mapping[str, nn.Parameter],
    sparsity: float,
) -> str:
    """What tells this training's checkpoints from another's, but for what `step_loss` holds."""
    if not checkpoint_folder():
        return ""
    masks = mask.tensors.values() if mask else ()
    facts = [task.seed, task.describe(), sparsity, without_run_state(config)]
    parts = [*task.fingerprints().values(), *map(fingerprint, masks), *parameters]
    parts += [str(fact) for fact in facts]
    return combined([*parts, step_loss.__module__, step_loss.__qualname__])


@dataclass(frozen=True)
class _Stepper(Generic[SomeBatch]):
    """What takes the steps of one training, in each of its processes."""

    task: TrainedTask[SomeBatch]
    step_loss: StepLoss[SomeBatch]
    config: TrainingConfig
    accelerator: Accelerator
    optimizer: Optimizer
    masters: MasterWeights

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        falls = self.config.lr_scheduler == "linear"
        risen = min(1.0, (step + 1) / max(1, self.config.lr_warmup_steps))
        return self.config.learning_rate * risen * (1 - falls * step / self.config.max_train_steps)

    def take(self, step: int) -> float:
        """One optimizer step; the loss, this process' own."""
        config, task = self.config, self.task
        parts, total = config.gradient_accumulation_steps, 0.0
        parameters = list(self.masters.tensors.values())
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            seed = step_seed(task.seed, step * parts + part)
            forget = self._own_share(task.forget_batches(seed))
            retain = self._own_share(task.retain_batches(seed + 1))
            bfloat16 = config.mixed_precision == "bf16"
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=bfloat16):
                loss = self.step_loss(forget, retain, step / config.max_train_steps)
            if self.anywhere(not loss.isfinite()):
                said = f"The loss is {loss.item()} at step {step}; lower learning_rate."
                raise NotFiniteError(said)
            # Not accelerator.backward, which would scale by the launcher's own settings.
            self.masters.backward(loss / parts, self.anywhere)
            total += loss.item() / parts
        self._average_gradients(parameters)
        norm = full_tensor(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        if not norm.isfinite():
            said = f"The gradient is {norm.item()} at step {step}; lower learning_rate."
            raise NotFiniteError(said)
        self.optimizer.step()
        return total

    def _own_share(self, batches: Iterable[SomeBatch]) -> SomeBatch:
        """This process' share of the first batch."""
        batch, world = next(iter(batches)), self.accelerator.num_processes
        # Uneven shares would weigh some samples more than one process does.
        if len(batch) % world:
            raise ValueError(
                f"A batch of {len(batch)} cannot be shared evenly by {world} processes; give "
                "batch_size and the number of pictures multiples of it."
            )
        return batch.shard(self.accelerator.process_index, world)

    def _average_gradients(self, parameters: Iterable[Tensor]) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                # Shards have been averaged as they were made.
                if parameter.grad is not None and not in_shards(parameter):
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def anywhere(self, flag: bool) -> bool:
        """The flag of all processes together, so that they stop at the same step."""
        return bool(all_reduce_sum(torch.tensor(float(flag))) > 0)


def step_seed(seed: int, step: int) -> int:
    """A seed for one step; even, so that its successor is free for a second stream."""
    return (seed + 1) * 10_000_000 + 2 * step


def step_number(seed: int, step_seed: int) -> int:
    """Which step's seed, or its successor, this is."""
    return (step_seed - (seed + 1) * 10_000_000) // 2


def _stop_message(done: int, steps: int) -> str:
    kept = "run the same again to go on" if checkpoint_folder() else "no checkpoint was asked for"
    return f"Stopped after step {done} of {steps}; {kept}."


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step always ends whole."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
