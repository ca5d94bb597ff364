"""The adversary before the prompt: words after which a model draws again what it forgot."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from erase.models.conditions import Condition
from erase.tasks.diffusion.adversaries.base import Found, Words
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.words import embeddings_as

FILLER = "a"
FIRST = 1  # a CLIP text begins with a token of its own


class Prefix(Words):
    """Words before every prompt. Source: AdvUnlearn (Zhang et al., NeurIPS 2024)."""

    count = 5

    def lengthened(self, prompts: Sequence[str]) -> list[str]:
        """The prompts with room for the words before them."""
        return [" ".join([FILLER] * self.count + [prompt]) for prompt in prompts]

    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the denoiser reads after these words."""
        begun = {name: partial(_beginning, words) for name, words in found.items()}
        with embeddings_as(self.denoiser, begun):
            return self.denoiser.condition(self.lengthened(batch.prompts))


def _beginning(words: Tensor, _: nn.Module, __: tuple, output: Tensor) -> Tensor:
    """Embedded prompts [N, tokens, width], those with room for them beginning with these words."""
    wanted = words.to(output.dtype).expand(len(output), -1, -1)
    return torch.cat([output[:, :FIRST], wanted, output[:, FIRST + len(words) :]], 1)
