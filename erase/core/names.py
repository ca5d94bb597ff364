"""The base's own modules and weights, whatever is wrapped around them or put beside them, by name.

A canonical name is `component.path`, with the path that the base itself has: without what a
compiled, parallel or adapted module puts between and without the `text_model.` that some text
encoders put before theirs. Stock LoRA files spell it in another way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

Value = TypeVar("Value")
_TEXT_MODEL = "text_model."
_WORDS = ".token_embedding.weight"
_LORA_SIDES = {"up": "lora_B", "down": "lora_A"}
_LORA_PARTS = {side: part for part, side in _LORA_SIDES.items()}
QUANTIZED = ("torch.ao.", "torchao.", "bitsandbytes.", "optimum.quanto.", "diffusers.quantizers.")
FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def unwrapped(module: nn.Module) -> nn.Module:
    """What a compiled, parallel or adapted module is wrapped around; a plain one itself."""
    return _layers(module)[-1]


def _layers(module: nn.Module) -> list[nn.Module]:
    """A module and what it is wrapped around, from the outside in."""
    layers = [module]
    while (inner := _wrapped(layers[-1])) is not None:
        layers.append(inner)
    return layers


def _wrapped(module: nn.Module) -> nn.Module | None:
    # Classes are asked and not modules, which look through all they hold for what they lack.
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return module.module
    if "_orig_mod" in module._modules:  # compiled
        return module._modules["_orig_mod"]
    if callable(adapted := getattr(type(module), "get_base_model", None)):  # a model of PEFT's
        return adapted(module)
    return module._modules.get("base_layer") if is_adapted(module) else None


def is_adapted(module: nn.Module) -> bool:
    """Whether it is a layer with an adapter of PEFT's, as LoRAs are loaded."""
    return hasattr(type(module), "adapter_layer_names")


def own_modules(
    module: nn.Module, path: str = "", seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """A module and all within it, each once, by the paths they have in the base.

    Left out is what was added: adapters, processors of attention, and what fusing it leaves.
    """
    module, seen = unwrapped(module), seen if seen is not None else set()
    if module in seen:
        return
    seen.add(module)
    yield path, module
    added = ("processor", *FUSED) if hasattr(type(module), "set_processor") else ()
    for name, child in module.named_children():
        if name not in added:
            yield from own_modules(child, f"{path}.{name}" if path else name, seen)


def on_the_way(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """Every module on the way to a tensor, wrappers too; KeyError or AttributeError if none is."""
    for part in path.split(".")[:-1]:
        yield from _layers(module)
        if (inner := unwrapped(module)._modules[part]) is None:
            raise KeyError(part)
        module = inner
    yield from _layers(module)


def require_in_force(modules: Iterable[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless the tensors in these modules decide, as plain numbers, what is computed.

    They do not where attention is fused or has a processor with weights of its own, where an
    adapter is fused into them or stands in their place, and where they are quantized or offloaded,
    in groups to files alone.
    """
    if reason := next(filter(None, map(_why_not, modules)), ""):
        raise ValueError(reason)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} is offloaded and holds no numbers; move the model back.")
        kind = f"{type(tensor.data).__module__}."
        if not holds_numbers(tensor) or kind.startswith(QUANTIZED):
            raise ValueError(f"{name} is quantized ({tensor.dtype}); open the model unquantized.")


def holds_numbers(tensor: Tensor) -> bool:
    """Whether numbers can be added to the values [...] and taken back."""
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not tensor.is_meta


def _why_not(module: nn.Module) -> str:
    processor = getattr(module, "processor", None)
    kind = type(processor).__name__
    # Of the older class of attention the flag stays when it is taken apart again.
    flagged = getattr(module, "fused_projections", False) and hasattr(module, "unfuse_projections")
    if flagged or kind.startswith("Fused"):
        return (
            "The pipeline's attention is fused, so that its own weights take no part; call "
            "pipeline.unfuse_qkv_projections() first."
        )
    if _has_weights(processor) and "IPAdapter" not in kind:
        return (
            f"The pipeline's attention has a {kind} with weights of its own; set its usual "
            "processors first (set_default_attn_processor)."
        )
    if is_adapted(module) and "original_module" in module._modules:
        return "An adapter stands in the place of the model's own layers; unload it first."
    if is_adapted(module) and getattr(module, "merged", False):
        return (
            "A LoRA is fused into the pipeline's weights; call unfuse_lora(), or "
            "unload_lora_weights() to keep it for good."
        )
    hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
    groups = (getattr(hook, "group", None) for hook in hooks.values())
    if any(getattr(group, "offload_to_disk_path", None) for group in groups):
        return (
            "The model is offloaded to files, from which its weights are read anew whenever it "
            "draws; offload its groups to memory, without offload_to_disk_path."
        )
    if f"{type(module).__module__}.".startswith(QUANTIZED):
        return f"The model is quantized ({type(module).__name__}); open it unquantized."
    return ""


def require_nothing_added(components: Mapping[str, object]) -> None:
    """ValueError where a LoRA, an IP-Adapter or the like is loaded beside the modules' weights."""
    modules = (part for part in components.values() if isinstance(part, nn.Module))
    for module in (part for whole in modules for part in whole.modules()):
        if is_adapted(module) or _has_weights(getattr(module, "processor", None)):
            raise ValueError(
                "An adapter is loaded into the pipeline; call unload_lora_weights(), after "
                "fuse_lora() to keep it for good, or unload_ip_adapter() first."
            )


def _has_weights(processor: object) -> bool:
    return isinstance(processor, nn.Module) and any(True for _ in processor.parameters())


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
