"""The adversary in the concept's place: a word that means it to the model that forgot its name."""

from torch import Tensor

from erase.models.conditions import Condition
from erase.models.tokens import alike_at_ends
from erase.tasks.diffusion.adversaries.base import Found, Words
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.words import PLACEHOLDER, placeholder_embeddings


class Word(Words):
    """One word where each prompt differs from its anchor; every batch looks for one of its own.

    Source: STEREO's first stage (Srivatsan et al., CVPR 2025), which inverts a word in each of four
    rounds between which the model learns; here each step is a round.
    """

    count = 1

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
    words = prompt.split()
    before, after = alike_at_ends(words, anchor.split())
    return " ".join([*words[:before], PLACEHOLDER, *words[len(words) - after :]])
