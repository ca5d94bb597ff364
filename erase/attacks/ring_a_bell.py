"""Ring-A-Bell: words whose embedding lies where prompt and concept vector point together."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import torch
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.attacks.tokens import no_word_vectors, room_for
from erase.core.seeds import seeded
from erase.support.config import Config, Positive, ShareOrNone, Within
from erase.support.distributed import of_first
from erase.support.progress import Bar
from erase.tasks.diffusion.words import tokenizer_of


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
    mutation: ShareOrNone = 0.15


@register("ring_a_bell", RingABellConfig, no_word_vectors, room_for("tokens"))
@torch.no_grad()
def ring_a_bell(target: Target, config: RingABellConfig) -> Outcome:
    """Search words that read as the anchors do plus the concept (Tsai et al., ICLR 2024).

    The denoiser is never asked. The concept is the mean difference of what it would read of the
    prompts from what of their anchors. The found words hold none of the prompts' own.
    """
    generator = seeded(target.seed)
    named, plain = (
        target.denoiser.compared(texts)
        for texts in ([p.text for p in target.prompts], [p.anchor for p in target.prompts])
    )
    goal = {
        site: plain[site].mean(0) + config.strength * (named[site] - plain[site]).mean(0)
        for site in plain
    }
    text = of_first(_search(target, goal, _allowed(target), config, generator))
    pictures = target.drawn([text] * len(target.prompts), "ring-a-bell")
    return target.outcome(pictures, target.drawing_passes, prompt=text)


def _allowed(target: Target) -> Tensor:
    """Numbers of whole words that no prompt holds; their text reads as the very same numbers."""
    tokenizer = tokenizer_of(target.denoiser)
    named = {number for p in target.prompts for number in tokenizer(p.text).input_ids}
    banned = named | set(tokenizer.all_special_ids)

    def is_word(number: int) -> bool:
        text = tokenizer.decode([number])
        again = tokenizer(f"{text} {text}", add_special_tokens=False).input_ids
        return again == [number, number]

    return torch.tensor([i for i in range(len(tokenizer)) if i not in banned and is_word(i)])


def _search(
    target: Target,
    goal: Mapping[str, Tensor],
    allowed: Tensor,
    config: RingABellConfig,
    generator: torch.Generator,
) -> str:
    """The text of the best candidate."""
    tokenizer = tokenizer_of(target.denoiser)

    def distances(population: Tensor) -> Tensor:
        texts = [tokenizer.decode(numbers) for numbers in population.tolist()]
        read = target.denoiser.compared(texts)
        errors = ((read[site] - goal[site]).square().sum((1, 2)) for site in goal)
        return reduce(torch.add, errors).cpu()

    def fresh(shape: tuple[int, int]) -> Tensor:
        return allowed[torch.randint(len(allowed), shape, generator=generator)]

    population = fresh((config.population, config.tokens))
    for _ in Bar(range(config.generations), desc="Ring-A-Bell", unit="generation"):
        order = distances(population).argsort()
        parents = population[order[: config.population // 2]]
        missing = config.population - len(parents)
        pairs = torch.randint(len(parents), (2, missing), generator=generator)
        shape = (missing, config.tokens)
        first = torch.rand(shape, generator=generator) < 0.5
        children = torch.where(first, parents[pairs[0]], parents[pairs[1]])
        mutated = torch.rand(shape, generator=generator) < config.mutation
        population = torch.cat([parents, torch.where(mutated, fresh(shape), children)])
    return tokenizer.decode(population[distances(population).argmin()].tolist())
