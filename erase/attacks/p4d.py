"""P4D: a prompt under which the erased model predicts what the base does of the concept."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.attacks.tokens import TokenSearch, attack_with_words, no_word_vectors, room_for
from erase.support.config import Positive
from erase.tasks.diffusion.words import placeholders


@dataclass(frozen=True)
class P4DConfig(TokenSearch):
    """Tokens instead of every prompt, which start further from what they must say."""

    tokens: Positive[int] = 3
    steps: Positive[int] = 150
    learning_rate: Positive[float] = 0.1


@register("p4d", P4DConfig, no_word_vectors, room_for("tokens"))
def p4d(target: Target, config: P4DConfig) -> Outcome:
    """Search one prompt for all that the model answers as the base did (Chin et al., ICML 2024).

    It needs the base's predictions, which the target holds: of its pictures under their prompts.
    """
    denoiser, memory, text = target.denoiser, target.memory, placeholders(config.tokens)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(memory.noisy), (config.batch_size,), generator=generator)
        noisy, timesteps, wanted = (
            part[rows].to(denoiser.device)
            for part in (memory.noisy, memory.timesteps, memory.predictions)
        )
        found = denoiser.predict(noisy, timesteps, denoiser.condition([text] * config.batch_size))
        return F.mse_loss(found, wanted)

    return attack_with_words(target, config, [text] * len(target.prompts), loss, "prompt")
