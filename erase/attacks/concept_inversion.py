"""Concept inversion: learn a word that brings the concept back."""

from dataclasses import dataclass

import torch

from erase.attacks import register
from erase.attacks.base import (
    PLACEHOLDER,
    Outcome,
    Target,
    denoising_loss,
    placeholder_embeddings,
    without_gradients,
)
from erase.support.config import Config, Positive
from erase.support.progress import Bar


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


@register("concept_inversion", ConceptInversionConfig)
def concept_inversion(target: Target, config: ConceptInversionConfig) -> Outcome:
    """Learn vectors from pictures of the concept, then ask for "a VECTORS" (Pham et al., 2024)."""
    pipeline = target.pipeline
    generator = torch.Generator().manual_seed(target.seed)
    words = " ".join([PLACEHOLDER] * config.vectors)
    table = pipeline.text_encoder.get_input_embeddings().weight
    start = table.detach().mean(0).repeat(config.vectors, 1)
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], config.learning_rate, weight_decay=0.0)
    with without_gradients(pipeline), placeholder_embeddings(pipeline, vectors):
        for _ in Bar(range(config.steps), desc="concept inversion", unit="step"):
            texts = [f"a {words}"] * len(target.latents)
            loss = denoising_loss(target, texts, config.batch_size, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            pictures = target.drawn([f"a {words}"] * len(target.prompts), "concept inversion")
    passes = config.steps * config.batch_size + target.drawing_passes
    return target.outcome(pictures, passes)
