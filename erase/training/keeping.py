"""What no step may move: outputs of weights for inputs that are kept."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from erase.core.keeping import without
from erase.core.mask import Mask
from erase.core.shards import distributed_like, own_part
from erase.tasks.base import Task
from erase.training.config import TrainedConfig


def require_keeps(
    task: Task, method: str, config: Any, trained: Mapping[str, nn.Parameter]
) -> None:
    """ValueError where the steps of a method cannot be held off what the task keeps."""
    if not task.kept:
        return
    leave = "leave --task.keep out"
    if not (isinstance(config, TrainedConfig) and config.keeps):
        raise ValueError(
            f"The method {method} takes no steps that can be held off what is kept; {leave}, or "
            "choose one that finetunes, such as salun or esd."
        )
    parts = sorted({name.partition(".")[0] for name in task.kept})
    if strange := [name for name in trained if name.partition(".")[0] not in parts]:
        raise ValueError(f"Training {strange[0]} changes what is read of texts that are kept; "
                         f"{leave}, or let the {' and '.join(parts)} alone change by "
                         "--task.components.")  # fmt: skip
    held = [weight for name, weight in trained.items() if name in task.kept]
    if not held:
        raise ValueError("No weight that trains reads the text, so that nothing has to be held off "
                         f"what is kept; {leave}, or widen --task.include.")  # fmt: skip
    if any(weight.device.type == "mps" for weight in held):
        raise ValueError("What is kept is held in float64, which a device of mps has not; take "
                         f"--device cpu, or {leave}.")  # fmt: skip


def holding(
    kept: Mapping[str, Tensor],
    tensors: Mapping[str, nn.Parameter],
    originals: Mapping[str, Tensor],
    mask: Mask | None,
) -> Callable[[], None]:
    """What brings tensors [...] to the nearest values that make of what is kept what originals do.

    kept: by name an orthonormal basis [d, k] of inputs. Masked-out weights stay bit equal; rows are
    solved for whole, so tensors are not to be cut to the mask. Source:
    gradient projection (Saha et al., ICLR 2021; after it CUIG, ICLR 2026), of the step and not of
    the gradient, since AdamW rescales each weight's own step, which leaves the plane.
    """
    entries = [
        (tensor, originals[name], kept[name].to(tensor.device),
         distributed_like(mask.tensors[name], tensor) if mask else None)
        for name, tensor in tensors.items() if name in kept
    ]  # fmt: skip

    @torch.no_grad()
    def hold() -> None:
        for tensor, original, basis, allowed in entries:
            now, start = own_part(tensor), own_part(original).double()
            rows = None if allowed is None else own_part(allowed).view(-1, len(basis))
            held = without((now.double() - start).view(-1, len(basis)), basis, rows)
            now.copy_(start + held.view_as(start))

    return hold
