"""Hearing what layers read while a model runs: their inputs, as rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from erase.core.names import canonical, own_modules
from erase.core.seeds import seeded

InputCallback = Callable[[str, Tensor], None]
MOST_ROWS = 4096


def hooks_are_heard() -> AbstractContextManager[object]:
    """While in force, compiled modules run as they are written; else they pass over later hooks."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """While in force, the hooks are heard that are registered when `handles` are asked for."""
    with ExitStack() as hooks, hooks_are_heard():
        for handle in handles:
            hooks.enter_context(handle)
        yield


def capture_inputs(
    layers: Mapping[str, nn.Module], callback: InputCallback
) -> AbstractContextManager[None]:
    """While in force, `callback(name, rows [n, d])` is called with every input of every layer."""

    def report(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        callback(name, as_rows(layer, inputs[0]))

    return hooked(
        layer.register_forward_pre_hook(partial(report, name)) for name, layer in layers.items()
    )


def as_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a linear layer's (or convolution's flattened) weight multiplies: rows [n, d].

    Of more than MOST_ROWS rows as many are drawn, always the same ones; evenly spaced ones would be
    of few columns of the picture.
    """
    if isinstance(layer, nn.Conv2d):
        padded = F.pad(inputs, layer._reversed_padding_repeated_twice)
        patches = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        inputs = patches.transpose(1, 2)  # [N, places, d]
    rows = inputs.reshape(-1, inputs.shape[-1])
    if len(rows) <= MOST_ROWS:
        return rows
    drawn = torch.randperm(len(rows), generator=seeded(len(rows)))
    return rows[drawn[:MOST_ROWS].to(rows.device)]


def projectable_layers(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """Every layer whose weight multiplies what it reads, by canonical name.

    Those are linear layers, ungrouped convolutions, and PyTorch's attention with packed queries,
    keys and values, whose output projection is never called as a layer and so is left out.
    """
    layers = dict(own_modules(module))
    unheard = {f"{path}.out_proj" for path, layer in layers.items() if _is_packed(layer)}
    return {
        canonical(prefix, path): layer
        for path, layer in layers.items()
        if path not in unheard and _is_projectable(layer)
    }


def weight_name(layer: nn.Module) -> str:
    """The name of the weight that multiplies what the layer reads."""
    return "in_proj_weight" if _is_packed(layer) else "weight"


def _is_packed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None


def _is_projectable(layer: nn.Module) -> bool:
    ungrouped = isinstance(layer, nn.Conv2d) and layer.groups == 1
    return ungrouped or isinstance(layer, nn.Linear) or _is_packed(layer)
