"""Adversarial prefix: tokens before the prompt that bring the concept back."""

from dataclasses import dataclass

import torch

from erase.attacks import register
from erase.attacks.base import PLACEHOLDER, Outcome, Target, denoising_loss, placeholder_embeddings
from erase.attacks.tokens import TokenSearch, search_tokens, words_of


@dataclass(frozen=True)
class PrefixConfig(TokenSearch):
    """Tokens before every prompt."""


@register("prefix", PrefixConfig)
def prefix(target: Target, config: PrefixConfig) -> Outcome:
    """Search a prefix under which the model denoises the concept's pictures.

    UnlearnDiffAtk's objective (Zhang et al., ECCV 2024) for one prefix over all prompts.
    """
    pipeline = target.pipeline
    generator = torch.Generator().manual_seed(target.seed)
    texts = [f"{' '.join([PLACEHOLDER] * config.tokens)} {p.text}" for p in target.prompts]
    vectors = search_tokens(
        pipeline, config, generator,
        lambda: denoising_loss(target, texts, config.batch_size, generator),
    )  # fmt: skip
    with placeholder_embeddings(pipeline, vectors), torch.no_grad():
        pictures = target.drawn(texts, "prefix")
    passes = config.steps * config.batch_size + target.drawing_passes
    words = words_of(pipeline, vectors) if config.hard else []
    return target.outcome(pictures, passes, prefix=words)
