"""Ring-A-Bell: words whose embedding lies where prompt and concept vector point together."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target, encode_text
from erase.support.config import Config, Positive, Within
from erase.support.progress import Bar


@dataclass(frozen=True)
class RingABellConfig(Config):
    """The concept vector and the genetic search.

    Args:
        tokens: length of the found prompt.
        strength: how many concept vectors are added to the prompt's embedding.
        population: candidates of a generation.
        generations: how often the better half is crossed and mutated.
        mutation: chance of each token to change.
    """

    tokens: Positive[int] = 8
    strength: float = 3.0
    population: Annotated[int, Within(lambda count: count >= 4, "4 or more")] = 64
    generations: Positive[int] = 40
    mutation: float = 0.15


@register("ring_a_bell", RingABellConfig)
@torch.no_grad()
def ring_a_bell(target: Target, config: RingABellConfig) -> Outcome:
    """Black box to the UNet (Tsai et al., ICLR 2024): only the text encoder is asked.

    The concept vector is the mean difference of the prompts' embeddings from their anchors'; the
    search goes from the anchors' mean. The found words hold none of the prompts' own.
    """
    pipeline = target.pipeline
    generator = torch.Generator().manual_seed(target.seed)
    named, plain = (
        encode_text(pipeline, texts)
        for texts in ([p.text for p in target.prompts], [p.anchor for p in target.prompts])
    )
    goal = plain.mean(0) + config.strength * (named - plain).mean(0)
    found = _search(target, goal, _allowed(target), config, generator)
    text = pipeline.tokenizer.decode(found.tolist())
    pictures = target.drawn([text] * len(target.prompts), "ring-a-bell")
    return target.outcome(pictures, target.drawing_passes, prompt=text)


def _allowed(target: Target) -> Tensor:
    """Numbers of whole words that no prompt holds; their text reads as the very same numbers."""
    tokenizer = target.pipeline.tokenizer
    named = {number for p in target.prompts for number in tokenizer(p.text).input_ids}
    banned = named | set(tokenizer.all_special_ids)

    def is_word(number: int) -> bool:
        text = tokenizer.decode([number])
        again = tokenizer(f"{text} {text}", add_special_tokens=False).input_ids
        return again == [number, number]

    return torch.tensor([i for i in range(len(tokenizer)) if i not in banned and is_word(i)])


def _search(
    target: Target,
    goal: Tensor,
    allowed: Tensor,
    config: RingABellConfig,
    generator: torch.Generator,
) -> Tensor:
    """The token numbers of the best candidate."""

    def fresh(shape: tuple[int, int]) -> Tensor:
        return allowed[torch.randint(len(allowed), shape, generator=generator)]

    population = fresh((config.population, config.tokens))
    for _ in Bar(range(config.generations), desc="Ring-A-Bell", unit="generation"):
        order = _distances(target, population, goal).argsort()
        parents = population[order[: config.population // 2]]
        missing = config.population - len(parents)
        pairs = torch.randint(len(parents), (2, missing), generator=generator)
        shape = (missing, config.tokens)
        first = torch.rand(shape, generator=generator) < 0.5
        children = torch.where(first, parents[pairs[0]], parents[pairs[1]])
        mutated = torch.rand(shape, generator=generator) < config.mutation
        population = torch.cat([parents, torch.where(mutated, fresh(shape), children)])
    return population[_distances(target, population, goal).argmin()]


def _distances(target: Target, population: Tensor, goal: Tensor) -> Tensor:
    tokenizer, encoder = target.pipeline.tokenizer, target.pipeline.text_encoder
    length, count = tokenizer.model_max_length, len(population)
    tokens = torch.full((count, length), tokenizer.pad_token_id)
    tokens[:, 0] = tokenizer.bos_token_id
    tokens[:, 1 : population.shape[1] + 1] = population
    tokens[:, population.shape[1] + 1] = tokenizer.eos_token_id
    return (encoder(tokens.to(encoder.device))[0] - goal).square().sum((1, 2))
