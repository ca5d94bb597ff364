"""Searching token vectors: free ones, or ones that end at words of the vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from erase.attacks.base import placeholder_embeddings, without_gradients
from erase.support.config import Config, Positive
from erase.support.progress import Bar


@dataclass(frozen=True)
class TokenSearch(Config):
    """The search.

    Args:
        tokens: how many tokens are searched, the same for all prompts.
        steps: optimizer steps.
        batch_size: pictures of a step.
        learning_rate: AdamW's on the tokens' vectors.
        hard: end at the nearest tokens of the vocabulary, else at free vectors.
    """

    tokens: Positive[int] = 5
    steps: Positive[int] = 100
    batch_size: Positive[int] = 8
    learning_rate: Positive[float] = 1e-2
    hard: bool = True


def search_tokens(
    pipeline: StableDiffusionPipeline,
    config: TokenSearch,
    generator: torch.Generator,
    loss: Callable[[], Tensor],
) -> Tensor:
    """Vectors [tokens, width] for the placeholders in the texts that `loss` reads.

    Hard ones are projected at each forward pass while the soft ones beneath them are stepped.
    Source: P4D (Chin et al., ICML 2024), after PEZ (Wen et al., NeurIPS 2023).
    """
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    start = torch.randint(len(table), (config.tokens,), generator=generator)
    soft = table[start].clone().requires_grad_()
    read = soft.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([soft], config.learning_rate, weight_decay=0.1)
    with without_gradients(pipeline), placeholder_embeddings(pipeline, read):
        for _ in Bar(range(config.steps), desc="searching tokens", unit="step"):
            read.data.copy_(_projected(soft, table) if config.hard else soft)
            (soft.grad,) = torch.autograd.grad(loss(), read)
            optimizer.step()
    return _projected(soft, table) if config.hard else soft.detach()


def words_of(pipeline: StableDiffusionPipeline, vectors: Tensor) -> list[str]:
    """The vocabulary's tokens that are nearest to the vectors."""
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    return pipeline.tokenizer.convert_ids_to_tokens(_nearest(vectors, table).tolist())


def _nearest(vectors: Tensor, table: Tensor) -> Tensor:
    similarity = F.normalize(vectors.detach(), dim=1) @ F.normalize(table, dim=1).T
    return similarity.argmax(1)


def _projected(vectors: Tensor, table: Tensor) -> Tensor:
    return table[_nearest(vectors, table)]
