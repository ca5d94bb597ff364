"""Canonical names of weights, `component.path`, and which of them a LoRA file holds."""

from collections.abc import Mapping

from torch import Tensor, nn

TEXT_MODEL = "text_model."


def lora_holds(name: str) -> bool:
    """Whether stock LoRA files hold changes of this tensor: of text encoders, attention and MLP."""
    in_text_layer = ".self_attn." in name or ".mlp." in name
    return name.endswith(".weight") and (in_text_layer or not name.startswith("text_encoder"))


def find_weight(components: Mapping[str, nn.Module], name: str) -> Tensor:
    """The parameter or buffer with canonical name `component.path`; ValueError if there is none.

    Canonical paths leave out the `text_model.` that some text encoders put before theirs.
    """
    component, path = name.split(".", 1)
    for spelling in (path, f"text_model.{path}"):
        for kind in (nn.Module.get_parameter, nn.Module.get_buffer):
            try:
                return kind(components[component], spelling)
            except (KeyError, AttributeError):
                continue
    raise ValueError(f"This model has no tensor {name}; load the base the erasure was made for.")
