"""Words searched in the text encoders: free vectors, or ones that end at the vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.attacks import Trial
from erase.attacks.base import Outcome, Target
from erase.core.seeds import seeded
from erase.models.family import Family
from erase.models.text_encoders import speller_of
from erase.prompts.catalogue import Sampling
from erase.support.config import Config, Positive
from erase.support.distributed import of_first
from erase.support.progress import Bar
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.words import (
    Vectors,
    placeholder_embeddings,
    tokenizer_of,
    vocabularies,
)

BESIDE = 3  # tokens of a text: its beginning, its end, and a word that is not searched


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


def no_word_vectors(family: Family) -> str:
    """Why no words can be searched in pipelines of a family, if they cannot."""
    none = "it searches words in CLIP text encoders, of which it has none"
    if family.learned:
        instead = "; state_inversion learns what others would say of them"
        return "" if family.learned.words else none + instead
    return "" if family.encoders else none


def room_for(words: str) -> Trial:
    """A trial by which texts have room for as many words as the config's field of that name."""

    def trial(denoiser: ConditionedDenoiser, _: Sampling, config: Any) -> None:
        pipeline, count = denoiser.pipeline, getattr(config, words)
        read = [asked or getattr(pipeline, name).model_max_length
                for name, asked in denoiser.family.readers if getattr(pipeline, name)]  # fmt: skip
        read += [speller_of(pipeline, name).model_max_length for name in denoiser.word_encoders]
        room = min(read, default=count + BESIDE) - BESIDE
        if count > room:
            raise ValueError(f"{words} is {count}, and of a text the model reads {room} that are "
                             "searched; give as many or fewer.")  # fmt: skip

    return trial


def attack_with_words(
    target: Target,
    config: TokenSearch,
    texts: Sequence[str],
    loss: Callable[[torch.Generator], Tensor],
    detail: str,
) -> Outcome:
    """What the texts draw with the words for their placeholders under which `loss` is low.

    `detail` is what the found words are called in the details.
    """
    generator = seeded(target.seed)
    vectors = _searched(target, config, generator, lambda: loss(generator))
    with placeholder_embeddings(target.denoiser, vectors), torch.no_grad():
        pictures = target.drawn(texts, "found words")
    numbers = _nearest(vectors, vocabularies(target.denoiser)) if config.hard else torch.empty(0)
    words = tokenizer_of(target.denoiser).convert_ids_to_tokens(numbers.tolist())
    passes = config.steps * config.batch_size + target.drawing_passes
    return target.outcome(pictures, passes, **{detail: words})


def _searched(
    target: Target, config: TokenSearch, generator: torch.Generator, loss: Callable[[], Tensor]
) -> Vectors:
    """Vectors for the placeholders in the texts that `loss` reads.

    Hard ones are projected at each forward pass while the soft ones beneath them are stepped; they
    are of the same words in every text encoder, which share a vocabulary.
    Source: P4D (Chin et al., ICML 2024), after PEZ (Wen et al., NeurIPS 2023).
    """
    tables = vocabularies(target.denoiser)
    start = torch.randint(len(next(iter(tables.values()))), (config.tokens,), generator=generator)
    soft = _words(tables, start)
    read = {name: vectors.clone().requires_grad_() for name, vectors in soft.items()}
    optimizer = torch.optim.AdamW([*soft.values()], config.learning_rate, weight_decay=0.1)
    with target.training_only({}), placeholder_embeddings(target.denoiser, read):
        for _ in Bar(range(config.steps), desc="searching tokens", unit="step"):
            now = _words(tables, _nearest(soft, tables)) if config.hard else soft
            for name, vectors in read.items():
                vectors.data.copy_(now[name])
            slopes = torch.autograd.grad(loss(), [*read.values()])
            for vectors, slope in zip(soft.values(), slopes, strict=True):
                vectors.grad = slope
            optimizer.step()
    return found_by_first(_words(tables, _nearest(soft, tables)) if config.hard else soft)


def found_by_first(vectors: Vectors) -> Vectors:
    """The first process's vectors, where others' may differ in their last bits."""
    return {
        name: of_first(vector.detach().cpu()).to(vector.device) for name, vector in vectors.items()
    }


def _nearest(vectors: Vectors, tables: Vectors) -> Tensor:
    """The numbers [k] of the words most similar to the vectors, over all text encoders."""
    similarity = [
        F.normalize(vectors[name].detach(), dim=1) @ F.normalize(table, dim=1).T
        for name, table in tables.items()
    ]
    return reduce(torch.add, similarity).argmax(1)


def _words(tables: Vectors, numbers: Tensor) -> Vectors:
    """The vectors [k, width] of these words."""
    return {name: table[numbers.to(table.device)] for name, table in tables.items()}
