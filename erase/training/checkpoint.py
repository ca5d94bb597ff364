"""Training checkpoints as safetensors and JSON: no pickle, and never a half-written one."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from erase.core.shards import copy_full_, distributed_like, full_tensor, in_shards
from erase.support.files import write_text
from erase.training.config import TrainingConfig

OPTIMIZER, AVERAGE = "optimizer", "average"
NUMBER = "#number"
_folder: ContextVar[Path | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints_in(folder: Path | None) -> Iterator[None]:
    """While in force, trainings of this thread go on from checkpoints here and write them here.

    None keeps none, as is the case outside of any folder.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def checkpoint_folder() -> Path | None:
    """The folder in force, if there is one."""
    return _folder.get()


class Checkpoints:
    """The checkpoints of one training in the folder in force, if there is one.

    `first` is the next step to run, after what the newest of them holds has been put in place.
    """

    def __init__(
        self,
        config: TrainingConfig,
        made_for: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        average: EMAModel | None = None,
    ):
        self._folder, self._made_for = checkpoint_folder(), made_for
        self._limit = config.checkpoints_total_limit
        self._modules, self._optimizer, self._average = modules, optimizer, average
        self.first = 0
        if self._folder and config.resume_from_checkpoint == "no":
            for older in [*_checkpoints(self._folder), *self._folder.glob("partial-*")]:
                shutil.rmtree(older, ignore_errors=True)  # several processes may try
        elif self._folder:
            self.first = load_checkpoint(self._folder, made_for, modules, optimizer, average)

    def save(self, step: int, writes: bool) -> None:
        """Write one, or help the process that writes to gather what lies in shards."""
        if self._folder:
            save_checkpoint(
                self._folder, self._made_for, step, self._modules, self._optimizer, self._average,
                self._limit, writes,
            )  # fmt: skip


def save_checkpoint(
    folder: Path,
    made_for: str,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    average: EMAModel | None = None,
    limit: int = 1,
    writes: bool = True,
) -> None:
    """Write `folder/checkpoint-STEP` under a temporary name, rename it, keep `limit` in all.

    Every process calls it where weights lie in shards, and one of them `writes`.
    """
    parts = {name: module.state_dict() for name, module in modules.items()}
    parts[OPTIMIZER] = _flat_state(optimizer)
    if average:
        parts[AVERAGE] = {str(i): shadow for i, shadow in enumerate(average.shadow_params)}
    target = folder / f"checkpoint-{step}"
    partial = folder / f"partial-{step}"
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    for name, tensors in parts.items():
        gathered = _gathered(tensors, writes)
        if writes:
            save_file(gathered, partial / f"{name}.safetensors")
    if not writes:
        return
    write_text(partial / "state.json", json.dumps({"step": step, "made_for": made_for}))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for older in _checkpoints(folder)[:-limit]:
        shutil.rmtree(older)


def load_checkpoint(
    folder: Path,
    made_for: str,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    average: EMAModel | None = None,
) -> int:
    """Restore the newest checkpoint of `folder` in place; the next step to run, 0 without one.

    Raises ValueError if it was made for something else.
    """
    source = latest_checkpoint(folder)
    if source is None:
        return 0
    kept = json.loads((source / "state.json").read_text(encoding="utf-8"))
    if kept.get("made_for") != made_for:
        raise ValueError(f"The checkpoints in {folder} are another training's; name a new folder.")

    def read(name: str) -> dict[str, Tensor]:
        return load_file(source / f"{name}.safetensors")

    for name, module in modules.items():
        own = module.state_dict()  # the weights themselves, not copies
        for key, values in read(name).items():
            copy_full_(own[key], values)
    state = optimizer.state_dict()
    state["state"] = _nested_state(read(OPTIMIZER))
    optimizer.load_state_dict(_like_weights(state, optimizer))
    if average:
        kept_average = read(AVERAGE)
        for i, shadow in enumerate(average.shadow_params):
            copy_full_(shadow, kept_average[str(i)])
        average.optimization_step = kept["step"]
    return kept["step"]


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, if any."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def _gathered(tensors: Mapping[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Whole copies on the CPU, one after the other, for the process that keeps them."""
    kept = {}
    for key, tensor in tensors.items():
        if keeps or in_shards(tensor):
            piece = full_tensor(tensor)
            if keeps:
                kept[key] = piece.cpu().contiguous()
    return kept


def _flat_state(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{path}": tensor for i, slots in state.items() for path, tensor in _leaves(slots)}


def _leaves(slots: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested slots by path, and plain numbers, which are marked."""
    for key, value in slots.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield prefix + key + NUMBER, torch.tensor(value)


def _nested_state(flat: Mapping[str, Tensor]) -> dict[int, dict[str, Any]]:
    nested: dict[int, dict[str, Any]] = {}
    for name, value in flat.items():
        index, path = name.split(".", 1)
        *folders, key = path.removesuffix(NUMBER).split("/")
        slots = nested.setdefault(int(index), {})
        for folder in folders:
            slots = slots.setdefault(folder, {})
        slots[key] = value.item() if path.endswith(NUMBER) else value
    return nested


def _like_weights(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state, in shards where the weight it is of lies in shards."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, slots in state["state"].items():
        weight = weights[number]
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                slots[key] = distributed_like(value, weight)
    return state
