"""The adversary in the concept's place: a word that means it to the model that forgot its name."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from erase.core.seeds import seeded
from erase.models.conditions import Condition
from erase.tasks.diffusion.adversaries.base import Adversary, Found, descended, no_words
from erase.tasks.diffusion.noising import DiffusionBatch, seed_of
from erase.tasks.diffusion.words import PLACEHOLDER, placeholder_embeddings, vocabularies


class Word(Adversary):
    """One word, the same for all prompts, where each differs from its anchor.

    Every batch looks for one of its own, from a random word of the vocabulary on, drawn by its
    noise. Source: STEREO's first stage (Srivatsan et al., CVPR 2025), which inverts a word in each
    of four rounds between which the model learns; here each step is a round.
    """

    usual_reach: ClassVar[float] = 20.0
    hindrance = staticmethod(no_words)

    def found(self, batch: DiffusionBatch) -> Found:
        """The word, by text encoder [1, width]."""
        tables, seed = vocabularies(self.denoiser), seed_of(batch)
        start = {name: _random_word(table, seed) for name, table in tables.items()}
        units = {name: table.std() for name, table in tables.items()}

        def error(word: Found) -> Tensor:
            return self.error(batch, self.condition(batch, word))

        return descended(error, start, units, self.steps, self.reach, self.denoiser.dtype)

    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the denoiser reads with the word in the concept's place."""
        with placeholder_embeddings(self.denoiser, found):
            return self.denoiser.condition(_without_concepts(batch))

    def prediction(self, batch: DiffusionBatch) -> Tensor:
        """The output under the word, where a toss says so, else under the concept's own name.

        Else the model would not learn to forget the name. STEREO's second stage draws among both.
        """
        tossed = (batch.noise.flatten(1)[:, 0] > 0).tolist()
        triples = zip(tossed, batch.prompts, _without_concepts(batch), strict=True)
        with placeholder_embeddings(self.denoiser, self.found(batch)):
            text = self.denoiser.condition([own if heads else word for heads, own, word in triples])
        return self.denoiser.denoise(batch, text)


def _without_concepts(batch: DiffusionBatch) -> list[str]:
    pairs = zip(batch.prompts, batch.anchors, strict=True)
    return [_without_concept(*pair) for pair in pairs]


def _without_concept(prompt: str, anchor: str) -> str:
    """The prompt with a placeholder for the words that its anchor hasn't at their place."""
    words, others = prompt.split(), anchor.split()
    first = _alike(words, others)
    last = len(words) - _alike(words[first:][::-1], others[first:][::-1])
    return " ".join([*words[:first], PLACEHOLDER, *words[last:]])


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many first words are alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _random_word(table: Tensor, seed: int) -> Tensor:
    """The vector [1, width] of a random word."""
    number = torch.randint(len(table), (1,), generator=seeded(seed))
    return table[number.to(table.device)]
