"""The base's own modules and weights, whatever is wrapped around them or put beside them."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

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
    if isinstance(module, DataParallel | DistributedDataParallel):
        return module.module
    if "_orig_mod" in module._modules:  # compiled
        return module._modules["_orig_mod"]
    if callable(adapted := getattr(module, "get_base_model", None)):  # a model of PEFT's
        return adapted()
    adapted_layer = is_adapted(module) and "base_layer" in module._modules
    return module._modules["base_layer"] if adapted_layer else None


def is_adapted(module: nn.Module) -> bool:
    """Whether it is a layer with an adapter of PEFT's, as LoRAs are loaded."""
    return hasattr(module, "adapter_layer_names")


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
    added = ("processor", *FUSED) if hasattr(module, "set_processor") else ()
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
    adapter is fused into them or stands in their place, and where they are quantized or offloaded.
    """
    if reason := next((reason for module in modules if (reason := _why_not(module))), ""):
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
    if f"{type(module).__module__}.".startswith(QUANTIZED):
        return f"The model is quantized ({type(module).__name__}); open it unquantized."
    return ""


def require_nothing_added(modules: Iterable[nn.Module]) -> None:
    """ValueError where a LoRA, an IP-Adapter or the like is loaded beside the modules' weights."""
    for module in modules:
        if is_adapted(module) or _has_weights(getattr(module, "processor", None)):
            raise ValueError(
                "An adapter is loaded into the pipeline; call unload_lora_weights(), after "
                "fuse_lora() to keep it for good, or unload_ip_adapter() first."
            )


def _has_weights(processor: object) -> bool:
    return isinstance(processor, nn.Module) and any(True for _ in processor.parameters())
