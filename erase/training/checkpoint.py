"""Training checkpoints as safetensors and JSON: no pickle, and never a half-written one."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import (
    tree_flatten_with_path,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from erase.core.shards import copy_full_, distributed_like, full_tensor, in_shards
from erase.support.files import write_json
from erase.training.config import TrainingConfig

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
            for older in [*_checkpoints(self._folder), *self._folder.glob("partial-*")]:
                shutil.rmtree(older, ignore_errors=True)  # several processes may try
        elif self._folder and (newest := latest_checkpoint(self._folder)):
            self.first = self._load(newest)

    def save(self, step: int, writes: bool) -> None:
        """Write `checkpoint-STEP` under a temporary name, rename it, keep as many as the limit.

        Every process calls it where weights lie in shards, and one of them `writes`.
        """
        if not self._folder:
            return
        partial = self._folder / f"partial-{step}"
        if writes:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        paths, tree = tree_flatten_with_path(self._optimizer.state_dict()["state"])
        slots = {".".join(str(part.key) for part in path): slot for path, slot in paths}  # type: ignore[attr-defined]
        numbers = {name: slot for name, slot in slots.items() if not isinstance(slot, Tensor)}
        moments = {name: slot for name, slot in slots.items() if name not in numbers}
        for part, tensors in (self._tensors | {OPTIMIZER: moments}).items():
            gathered = _gathered(tensors, writes)
            if writes:
                save_file(gathered, partial / f"{part}.safetensors")
        if writes:
            record = {
                "step": step,
                "made_for": self._made_for,
                "tree": treespec_dumps(tree),
                "slots": [[name, numbers.get(name)] for name in slots],
            }
            write_json(partial / STATE, record)
            target = self._folder / f"checkpoint-{step}"
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for older in _checkpoints(self._folder)[: -self._limit]:
                shutil.rmtree(older)

    def _load(self, source: Path) -> int:
        """Restore a checkpoint in place; the step it is of."""
        record = json.loads((source / STATE).read_text(encoding="utf-8"))
        if record.get("made_for") != self._made_for:
            raise ValueError(
                f"The checkpoints in {self._folder} are another training's; name a new folder."
            )
        for part, tensors in self._tensors.items():
            for name, values in load_file(source / f"{part}.safetensors").items():
                copy_full_(tensors[name], values)
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
        return record["step"]


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
            piece = full_tensor(tensor.detach())
            if keeps:
                kept[key] = piece.cpu().contiguous()
    return kept
