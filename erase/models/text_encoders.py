"""Which text encoders a pipeline's call reads prompts with, so that gradients reach them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from erase.core.activations import hooked
from erase.models.calling import PROMPT
from erase.models.listening import Listener, leaves


def heard_encoders(listener: Listener, denoisers: Sequence[str]) -> list[str]:
    """The text encoders whose words' vectors have gradients at the denoisers.

    It is heard in a call that is broken off where the denoisers are first asked.
    """
    named = listener.pipeline.components.items()
    models = {n: m for n, m in named if isinstance(m, PreTrainedModel)}
    others = [name for name in models if name not in listener.modules]
    return [name for name in others if _is_heard(listener, models[name], denoisers)]


def _is_heard(listener: Listener, encoder: nn.Module, denoisers: Sequence[str]) -> bool:
    try:
        with torch.enable_grad(), _with_gradients(listener.pipeline, encoder):
            draw = replace(listener, grads=True).draw(PROMPT, until=denoisers)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a call that can't be made with gradients hands on none
        return False
    given = [leaf for call in draw.calls for leaf in leaves(call.arguments).values()]
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given)


def speaks_clip(pipeline: DiffusionPipeline, encoder: str) -> bool:
    """Whether a text encoder is CLIP's, and words are spelt for it."""
    clip = type(getattr(pipeline, encoder)).__name__.startswith("CLIPText")
    return clip and speller_of(pipeline, encoder) is not None


def speller_of(pipeline: DiffusionPipeline, encoder: str) -> Any:
    """The tokenizer that spells for a text encoder, by its name; None where there is none."""
    speller = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"), None)
    return getattr(speller, "tokenizer", speller)  # a processor's


@contextmanager
def _with_gradients(pipeline: DiffusionPipeline, encoder: nn.Module) -> Iterator[None]:
    """While in force, what an encoder looks up asks for gradients, and no weight does.

    Nothing is held to compute them with.
    """
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    asked = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    tables = [part for part in encoder.modules() if isinstance(part, nn.Embedding)]
    lookups = (
        t.register_forward_hook(lambda _, __, vectors: vectors.requires_grad_()) for t in tables
    )
    with ExitStack() as after, hooked(lookups), saved_tensors_hooks(lambda _: None, lambda _: _):
        for weight in asked:
            after.callback(weight.requires_grad_)
            weight.requires_grad_(False)
        yield
