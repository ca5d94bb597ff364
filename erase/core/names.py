"""Canonical names of weights, `component.path`, and how stock LoRA files spell them.

Canonical paths leave out the `text_model.` that some text encoders put before theirs.
"""

from collections.abc import Mapping

from torch import Tensor, nn

_TEXT_MODEL = "text_model."
_LORA_SIDES = {"up": "lora_B", "down": "lora_A"}
_LORA_PARTS = {side: part for part, side in _LORA_SIDES.items()}


def canonical(component: str, path: str) -> str:
    """The canonical name of what lies at a path of a component."""
    return f"{component}.{path.removeprefix(_TEXT_MODEL)}"


def named_parameters(components: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter of the components by canonical name, a shared one once."""
    return {
        canonical(component, path): parameter
        for component, module in components.items()
        for path, parameter in module.named_parameters()
    }


def find_weight(components: Mapping[str, nn.Module], name: str) -> Tensor:
    """The parameter or buffer of this name, of any shape [...]; ValueError if there is none."""
    component, _, path = name.partition(".")
    for spelling in (path, _TEXT_MODEL + path):
        for kind in (nn.Module.get_parameter, nn.Module.get_buffer):
            try:
                return kind(components[component], spelling)
            except (KeyError, AttributeError):
                continue
    raise ValueError(f"This model has no tensor {name}; load the base the erasure was made for.")


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

    Raises KeyError or ValueError for what is no such key.
    """
    module, side, _ = key.rsplit(".", 2)
    return canonical(*f"{module}.weight".split(".", 1)), _LORA_PARTS[side]
