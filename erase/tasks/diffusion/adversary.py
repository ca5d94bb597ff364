"""What a model is trained against that forgets: words before a prompt that undo it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from erase.core.activations import hooks_are_heard
from erase.core.precision import widened
from erase.core.seeds import seeded
from erase.core.shards import full_tensor
from erase.support.distributed import all_gather, all_reduce_sum

WORDS, FILLER = 5, "a"
FIRST = 1  # a CLIP text begins with a token of its own


def with_prefix_slots(prompts: Sequence[str]) -> list[str]:
    """The prompts with room for WORDS words before them."""
    return [" ".join([FILLER] * WORDS + [prompt]) for prompt in prompts]


@contextmanager
def prefix_embeddings(
    encoders: Mapping[str, PreTrainedModel], words: Mapping[str, Tensor]
) -> Iterator[None]:
    """While in force, prompts that are `with_prefix_slots` read as if they began with these words.

    words: by text encoder, vectors [WORDS, width].
    """

    def replaced(wanted: Tensor, _: nn.Module, __: tuple, output: Tensor) -> Tensor:
        wanted = wanted.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, :FIRST], wanted, output[:, FIRST + WORDS :]], 1)

    with ExitStack() as hooks:
        hooks.enter_context(hooks_are_heard())
        for name, vectors in words.items():
            embedding = encoders[name].get_input_embeddings()
            handle = embedding.register_forward_hook(partial(replaced, vectors))
            hooks.callback(handle.remove)
        yield


def adversarial_prefix(
    encoders: Mapping[str, PreTrainedModel],
    error: Callable[[], Tensor],
    noise: Tensor,
    steps: int,
    reach: float,
) -> dict[str, Tensor]:
    """The words, by text encoder [WORDS, width], that make a batch's error small.

    `error` computes it through the encoders, as a scalar; processes that share a batch find the
    same words. The search starts at random words of the vocabulary, drawn by the batch's `noise`,
    and takes `steps` gradient steps of one length, together `reach` standard deviations of the
    vocabulary's numbers. Source: the inner problem of AdvUnlearn (Zhang et al., NeurIPS 2024).
    """
    tables = {
        name: full_tensor(encoder.get_input_embeddings().weight.detach())
        for name, encoder in encoders.items()
    }
    seed = int(all_gather(noise.flatten()[0].float().view(torch.int32).item())[0])
    words = {name: _random_words(table, seed) for name, table in tables.items()}
    for _ in range(steps):
        words = {name: vectors.requires_grad_() for name, vectors in words.items()}
        with torch.enable_grad(), prefix_embeddings(encoders, words):
            slopes = torch.autograd.grad(error(), list(words.values()))
        words = {
            name: vectors.detach()
            - reach / steps * widened(tables[name]).std() * _of_unit_size(slope)
            for (name, vectors), slope in zip(words.items(), slopes, strict=True)
        }
    return words


def _random_words(table: Tensor, seed: int) -> Tensor:
    """Vectors [WORDS, width] of random words."""
    numbers = torch.randint(len(table), (WORDS,), generator=seeded(seed))
    return widened(table[numbers.to(table.device)])


def _of_unit_size(slope: Tensor) -> Tensor:
    """All processes' slope, its root mean square 1."""
    slope = all_reduce_sum(widened(slope))
    return slope / slope.square().mean().sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
