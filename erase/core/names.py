"""Canonical names of weights, `component.path`, and how stock LoRA files spell them.

Canonical paths are the base's own, without what a compiled, parallel or adapted module puts between
and without the `text_model.` that some text encoders put before theirs.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from erase.core.plain import on_the_way, own_modules

Value = TypeVar("Value")
_TEXT_MODEL = "text_model."
_WORDS = ".token_embedding.weight"
_LORA_SIDES = {"up": "lora_B", "down": "lora_A"}
_LORA_PARTS = {side: part for part, side in _LORA_SIDES.items()}


def canonical(component: str, path: str) -> str:
    """The canonical name of what lies at a path of a component."""
    return f"{component}.{path.removeprefix(_TEXT_MODEL)}"


def named_parameters(components: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter of the components by canonical name, a shared one once."""
    found = (
        (canonical(component, f"{path}.{leaf}" if path else leaf), parameter)
        for component, module in components.items()
        for path, part in own_modules(module)
        for leaf, parameter in part._parameters.items()
        if parameter is not None
    )
    first: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in found:
        first.setdefault(id(parameter), (name, parameter))
    return dict(first.values())


def filter_names(
    tensors: Mapping[str, Value], include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, Value]:
    """Those whose name fits a pattern of `include` and none of `exclude`, as in `*attn2*`."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }


def way_to(components: Mapping[str, nn.Module], name: str) -> list[nn.Module]:
    """Every module on the way to the tensor of this name; ValueError if there is none such."""
    component, _, path = name.partition(".")
    for spelling in (path, _TEXT_MODEL + path):
        try:
            way = list(on_the_way(components[component], spelling))
        except (KeyError, AttributeError):
            continue
        if _tensors(way[-1]).get(_leaf(name)) is not None:
            return way
    raise ValueError(f"This model has no tensor {name}; load the base the erasure was made for.")


def find_weight(components: Mapping[str, nn.Module], name: str) -> Tensor:
    """The parameter or buffer of this name, of any shape [...]; ValueError if there is none."""
    return _tensors(way_to(components, name)[-1])[_leaf(name)]


def find_rows(components: Mapping[str, nn.Module], name: str, shape: torch.Size) -> Tensor:
    """The tensor of this name, or its first rows if it is a table of more words than the shape's.

    A text encoder that has learnt a word since has a row more. Raises ValueError if there is none.
    """
    weight = find_weight(components, name)
    more = len(shape) == weight.dim() and weight.shape[1:] == shape[1:] and len(weight) > shape[0]
    return weight.detach()[: shape[0]] if more and name.endswith(_WORDS) else weight


def _tensors(module: nn.Module) -> dict[str, Any]:
    return {**module._buffers, **module._parameters}


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def lora_holds(name: str) -> bool:
    """Whether stock LoRA files hold changes of this tensor: of text encoders, attention and MLP."""
    in_text_layer = ".self_attn." in name or ".mlp." in name
    return name.endswith(".weight") and (in_text_layer or not name.startswith("text_encoder"))


def lora_key(name: str, part: str) -> str:
    """What a stock LoRA file calls the "up" or "down" factor of a weight's change."""
    component, path = name.removesuffix(".weight").split(".", 1)
    if component.startswith("text_encoder"):
        path = _TEXT_MODEL + path
    return f"{component}.{path}.{_LORA_SIDES[part]}.weight"


def from_lora_key(key: str) -> tuple[str, str]:
    """The canonical name and the part that a key stands for, in either spelling of its path.

    Raises ValueError for what is no such key, as of a bias or a scale.
    """
    module, _, side = key.removesuffix(".weight").rpartition(".")
    component, _, path = module.partition(".")
    if not key.endswith(".weight") or not path or side not in _LORA_PARTS:
        raise ValueError(f"{key} is no factor of a LoRA")
    return canonical(component, f"{path}.weight"), _LORA_PARTS[side]
