"""Concept inversion: learn a word that brings the concept back."""

from dataclasses import dataclass

import torch

from erase.attacks import register
from erase.attacks.base import Outcome, Target, denoising_loss
from erase.attacks.tokens import found_by_first, no_word_vectors, room_for
from erase.core.seeds import seeded
from erase.support.config import Config, Positive
from erase.support.progress import Bar
from erase.tasks.diffusion.words import placeholder_embeddings, placeholders, vocabularies


@dataclass(frozen=True)
class ConceptInversionConfig(Config):
    """Textual inversion on the erased model.

    Args:
        vectors: how many word vectors are learnt.
        steps: optimizer steps.
        batch_size: pictures of a step.
        learning_rate: AdamW's.
    """

    vectors: Positive[int] = 1
    steps: Positive[int] = 100
    batch_size: Positive[int] = 4
    learning_rate: Positive[float] = 1e-2


@dataclass(frozen=True)
class LongInversionConfig(ConceptInversionConfig):
    """Four vectors in place of one."""

    vectors: Positive[int] = 4


@register("concept_inversion_of_four", LongInversionConfig, no_word_vectors, room_for("vectors"))
@register("concept_inversion", ConceptInversionConfig, no_word_vectors, room_for("vectors"))
def concept_inversion(target: Target, config: ConceptInversionConfig) -> Outcome:
    """Learn vectors from pictures of the concept, then ask for "a VECTORS" (Pham et al., 2024)."""
    generator = seeded(target.seed)
    vectors = {
        name: table.mean(0).repeat(config.vectors, 1).requires_grad_()
        for name, table in vocabularies(target.denoiser).items()
    }
    optimizer = torch.optim.AdamW([*vectors.values()], config.learning_rate, weight_decay=0.0)
    text = f"a {placeholders(config.vectors)}"
    texts = [text] * len(target.latents)
    with target.training_only({}), placeholder_embeddings(target.denoiser, vectors):
        for _ in Bar(range(config.steps), desc="concept inversion", unit="step"):
            loss = denoising_loss(target, texts, config.batch_size, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with placeholder_embeddings(target.denoiser, found_by_first(vectors)), torch.no_grad():
        pictures = target.drawn([text] * len(target.prompts), "concept inversion")
    passes = config.steps * config.batch_size + target.drawing_passes
    return target.outcome(pictures, passes)
