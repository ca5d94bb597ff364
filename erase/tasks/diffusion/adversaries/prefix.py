"""The adversary before the prompt: words after which a model draws again what it forgot."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from erase.core.activations import hooks_are_heard
from erase.core.seeds import seeded
from erase.models.conditions import Condition
from erase.tasks.diffusion.adversaries.base import Adversary, Found, descended, no_words
from erase.tasks.diffusion.noising import DiffusionBatch, seed_of
from erase.tasks.diffusion.words import vocabularies

WORDS, FILLER = 5, "a"
FIRST = 1  # a CLIP text begins with a token of its own


class Prefix(Adversary):
    """WORDS words before every prompt, the same for all.

    The search starts at random words of the vocabulary, drawn by the batch's noise.
    Source: AdvUnlearn (Zhang et al., NeurIPS 2024).
    """

    usual_reach: ClassVar[float] = 20.0
    hindrance = staticmethod(no_words)

    def lengthened(self, prompts: Sequence[str]) -> list[str]:
        """The prompts with room for the words before them."""
        return [" ".join([FILLER] * WORDS + [prompt]) for prompt in prompts]

    def found(self, batch: DiffusionBatch) -> Found:
        """The words, by text encoder [WORDS, width]."""
        tables, seed = vocabularies(self.denoiser), seed_of(batch)
        start = {name: _random_words(table, seed) for name, table in tables.items()}
        units = {name: table.std() for name, table in tables.items()}

        def error(words: Found) -> Tensor:
            return self.error(batch, self.condition(batch, words))

        return descended(error, start, units, self.steps, self.reach, self.denoiser.dtype)

    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the denoiser reads after these words."""
        with _before_prompts(self.denoiser.encoders, found):
            return self.denoiser.condition(self.lengthened(batch.prompts))


@contextmanager
def _before_prompts(
    encoders: Mapping[str, PreTrainedModel], words: Mapping[str, Tensor]
) -> Iterator[None]:
    """While in force, prompts with room for them read as if they began with these words."""

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


def _random_words(table: Tensor, seed: int) -> Tensor:
    """Vectors [WORDS, width] of random words."""
    numbers = torch.randint(len(table), (WORDS,), generator=seeded(seed))
    return table[numbers.to(table.device)]
