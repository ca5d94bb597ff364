"""Adversarial prefix: tokens before the prompt that bring the concept back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.attacks import register
from erase.attacks.base import (
    PLACEHOLDER,
    Outcome,
    Target,
    denoising_loss,
    frozen,
    standing_for,
)
from erase.checks import require_positive


@dataclass(frozen=True)
class PrefixConfig:
    """The search.

    Args:
        tokens: how many tokens are put before every prompt.
        steps: optimizer steps, one prefix for all prompts.
        batch_size: prompts of a step.
        learning_rate: AdamW's on the prefix' vectors.
        hard: end at the nearest tokens of the vocabulary, else at free vectors.
    """

    tokens: int = 5
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-2
    hard: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "steps", "batch_size", "learning_rate")


@register("prefix", PrefixConfig)
def prefix(target: Target, config: PrefixConfig) -> Outcome:
    """Search a prefix under which the model denoises the concept's pictures.

    UnlearnDiffAtk's objective (Zhang et al., ECCV 2024) for one prefix over all prompts; hard
    tokens by projecting at each forward pass and stepping the soft vectors (P4D; Chin et al., ICML
    2024).
    """
    pipeline = target.pipeline
    generator = torch.Generator().manual_seed(target.seed)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    start = torch.randint(len(table), (config.tokens,), generator=generator)
    soft = table[start].clone().requires_grad_()
    read = soft.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([soft], config.learning_rate, weight_decay=0.1)
    texts = [f"{' '.join([PLACEHOLDER] * config.tokens)} {p.text}" for p in target.prompts]
    with frozen(pipeline), standing_for(pipeline, read):
        for _ in range(config.steps):
            read.data.copy_(_projected(soft, table) if config.hard else soft)
            loss = denoising_loss(target, texts, config.batch_size, generator)
            (soft.grad,) = torch.autograd.grad(loss, read)
            optimizer.step()
        read.data.copy_(_projected(soft, table) if config.hard else soft)
        with torch.no_grad():
            pictures = target.drawn(texts, "prefix")
    passes = config.steps * config.batch_size + target.drawing_passes
    words = _words(target, read.detach(), table) if config.hard else []
    return target.outcome(pictures, passes, prefix=words)


def _nearest(vectors: Tensor, table: Tensor) -> Tensor:
    similarity = F.normalize(vectors.detach(), dim=1) @ F.normalize(table, dim=1).T
    return similarity.argmax(1)


def _projected(vectors: Tensor, table: Tensor) -> Tensor:
    return table[_nearest(vectors, table)]


def _words(target: Target, vectors: Tensor, table: Tensor) -> list[str]:
    return target.pipeline.tokenizer.convert_ids_to_tokens(_nearest(vectors, table).tolist())
