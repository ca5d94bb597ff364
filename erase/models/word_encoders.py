"""Which CLIP text encoders a pipeline's call reads words with, so that gradients reach them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erase.core.activations import hooks_are_heard
from erase.models.calling import PROMPT
from erase.models.listening import Listener, leaves


def word_encoders(listener: Listener, denoisers: Sequence[str]) -> list[str]:
    """The CLIP text encoders with tokenizers whose words' vectors have gradients at the denoisers.

    It is heard in a call that is broken off where the denoisers are first asked.
    """
    pipeline, found = listener.pipeline, []
    for name, part in pipeline.components.items():
        clip = type(part).__name__.startswith("CLIPText")
        if clip and getattr(pipeline, tokenizer_name(name), None) is not None:
            with torch.enable_grad(), _frozen(pipeline), _with_gradients(part):
                draw = replace(listener, grads=True).draw(PROMPT, until=denoisers)
            given = [leaf for call in draw.calls for leaf in leaves(call.arguments).values()]
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given):
                found.append(name)
    return found


def tokenizer_name(encoder: str) -> str:
    """The component that spells for a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


@contextmanager
def _frozen(pipeline: DiffusionPipeline) -> Iterator[None]:
    """While in force, no weight asks for gradients."""
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    asked = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_()


@contextmanager
def _with_gradients(encoder: nn.Module) -> Iterator[None]:
    """While in force, the vectors of words that a text encoder reads ask for gradients."""
    with ExitStack() as hooks, hooks_are_heard():
        table = encoder.get_input_embeddings()  # type: ignore[operator]
        handle = table.register_forward_hook(lambda _, __, vectors: vectors.requires_grad_())
        hooks.callback(handle.remove)
        yield
