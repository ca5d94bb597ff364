"""Adversarial prefix: tokens before the prompt that bring the concept back."""

from dataclasses import dataclass

from erase.attacks import register
from erase.attacks.base import Outcome, Target, denoising_loss
from erase.attacks.tokens import TokenSearch, attack_with_words, no_word_vectors, room_for
from erase.tasks.diffusion.words import placeholders


@dataclass(frozen=True)
class PrefixConfig(TokenSearch):
    """Tokens before every prompt."""


@register("prefix", PrefixConfig, no_word_vectors, room_for("tokens"))
def prefix(target: Target, config: PrefixConfig) -> Outcome:
    """Search a prefix under which the model denoises the concept's pictures.

    UnlearnDiffAtk's objective (Zhang et al., ECCV 2024) for one prefix over all prompts.
    """
    texts = [f"{placeholders(config.tokens)} {prompt.text}" for prompt in target.prompts]
    return attack_with_words(
        target, config, texts,
        lambda generator: denoising_loss(target, texts, config.batch_size, generator), "prefix",
    )  # fmt: skip
