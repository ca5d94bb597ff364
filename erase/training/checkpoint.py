"""Training checkpoints as safetensors and JSON: no pickle, and never a half-written one."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import (
    tree_flatten_with_path,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from erase.core.shards import distributed_like, full_tensor
from erase.support.errors import first_line
from erase.support.files import read_json, replaced_folder, write_json
from erase.training.config import TrainingConfig

logger = logging.getLogger(__name__)
FORMAT = 3  # of the files; 1 held whole modules, 2 no tree of the optimizer's
OPTIMIZER, STATE = "optimizer", "state.json"
_folder: ContextVar[Path | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints_in(folder: str | Path | None) -> Iterator[None]:
    """While in force, trainings of this thread go on from checkpoints here and write them here.

    None keeps none, as is the case outside of any folder.
    """
    token = _folder.set(Path(folder) if folder else None)
    try:
        yield
    finally:
        _folder.reset(token)


def checkpoint_folder() -> Path | None:
    """The folder in force, if there is one."""
    return _folder.get()


class Checkpoints:
    """The checkpoints of one training in the folder in force, if there is one.

    They hold what changes: the trained tensors, their average and the optimizer's state. `first` is
    the next step to run, after the newest of them has been put in place. Raises ValueError if that
    is another training's.
    """

    def __init__(
        self,
        config: TrainingConfig,
        made_for: str,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        average: EMAModel | None = None,
    ):
        self._folder, self._made_for = checkpoint_folder(), f"{FORMAT} {made_for}"
        self._limit, self.first = config.checkpoints_total_limit, 0
        self._optimizer, self._average = optimizer, average
        self._tensors: dict[str, Mapping[str, Tensor]] = {"parameters": parameters}
        if average:
            # Of the tensors alone, not of what follows them.
            shadows = dict(zip(parameters, average.shadow_params, strict=False))
            self._tensors["average"] = shadows
        if self._folder and config.resume_from_checkpoint == "no":
            for older in [*checkpoints(self._folder), *self._folder.glob(".*.partial")]:
                shutil.rmtree(older, ignore_errors=True)  # several processes may try
        elif self._folder:
            self.first = self._resumed(self._folder)
        if self.first:
            logger.warning("Going on from step %d of %d.", self.first, config.max_train_steps)

    def save(self, step: int, writes: bool) -> None:
        """Write `checkpoint-STEP`, whole or not at all; keep as many up to it as the limit.

        Every process calls it where weights lie in shards, and one of them `writes`. Newer ones are
        damaged, or training would have gone on from them; they go.
        """
        if not self._folder:
            return
        target = self._folder / f"checkpoint-{step}"
        if writes:
            shutil.rmtree(target, ignore_errors=True)
        with replaced_folder(target) if writes else nullcontext(target) as partial:
            self._write(step, partial, writes)
        if writes:
            kept = [path for path in checkpoints(self._folder) if _step(path) <= step]
            for other in {*checkpoints(self._folder)} - {*kept[-self._limit :]}:
                shutil.rmtree(other)

    def _write(self, step: int, folder: Path, writes: bool) -> None:
        paths, tree = tree_flatten_with_path(self._optimizer.state_dict()["state"])
        slots = {".".join(str(part.key) for part in path): slot for path, slot in paths}  # type: ignore[attr-defined]
        numbers = {name: slot for name, slot in slots.items() if not isinstance(slot, Tensor)}
        moments = {name: slot for name, slot in slots.items() if name not in numbers}
        for part, tensors in (self._tensors | {OPTIMIZER: moments}).items():
            gathered = _gathered(tensors, writes)
            if writes:
                save_file(gathered, folder / f"{part}.safetensors")
        if writes:
            record = {
                "step": step,
                "made_for": self._made_for,
                "tree": treespec_dumps(tree),
                "slots": [[name, numbers.get(name)] for name in slots],
            }
            write_json(folder / STATE, record)

    def _resumed(self, folder: Path) -> int:
        """The step of the newest checkpoint that is whole, which is put in place, or the first."""
        for newest in reversed(checkpoints(folder)):
            try:
                record = read_json(newest / STATE)
                if same := record["made_for"] == self._made_for:
                    self._require_whole(newest)
            except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s is damaged (%s); training goes on from what was before it.",
                               newest, first_line(error))  # fmt: skip
                continue
            if not same:
                raise ValueError(
                    f"The checkpoints in {folder} are another training's; name a new folder."
                )
            self._load(newest, record)
            return int(record["step"])
        return 0

    def _require_whole(self, source: Path) -> None:
        """Raise KeyError, OSError or SafetensorError if a part is cut or missing."""
        for part in (*self._tensors, OPTIMIZER):
            with safe_open(source / f"{part}.safetensors", "pt") as held:
                if lost := self._tensors.get(part, {}).keys() - held.keys():
                    raise KeyError(f"no {lost.pop()} in {part}")

    @torch.no_grad()
    def _load(self, source: Path, record: Mapping[str, Any]) -> None:
        """Restore a checkpoint in place."""
        for part, tensors in self._tensors.items():
            for name, values in load_file(source / f"{part}.safetensors").items():
                tensors[name].copy_(distributed_like(values, tensors[name]))
        state = self._optimizer.state_dict()
        moments = load_file(source / f"{OPTIMIZER}.safetensors")
        leaves = [moments.get(name, number) for name, number in record["slots"]]
        state["state"] = tree_unflatten(leaves, treespec_loads(record["tree"]))
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for number, slots in state["state"].items():
            for key, value in slots.items():
                if isinstance(value, Tensor) and value.shape == weights[number].shape:
                    slots[key] = distributed_like(value, weights[number])
        self._optimizer.load_state_dict(state)
        if self._average:
            self._average.optimization_step = record["step"]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _gathered(tensors: Mapping[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Whole copies on the CPU, one after the other, for the process that keeps them."""
    kept = {}
    for key, tensor in tensors.items():
        whole = full_tensor(tensor.detach())  # of one in shards every process has to ask for it
        if keeps:
            kept[key] = whole.cpu().contiguous()
    return kept
