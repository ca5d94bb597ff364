"""What an attack is given, what it gives back, and the parts that several attacks share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.seeds import seeded
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt
from erase.prompts.seeds import ATTACK_SEED, of_attack
from erase.support.distributed import shared_map
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.sampling import draw
from erase.training.preserve import only_trainable_of

AT_ONCE = 8  # pictures
Shows = Callable[[Tensor, Sequence[Prompt]], list[bool]]


@dataclass(frozen=True)
class BasePredictions:
    """What the base predicts of noised pictures of the concept under their prompts.

    noisy, predictions: [n, C, h, w]; timesteps [n].
    """

    noisy: Tensor
    timesteps: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class Target:
    """A model from which a concept was erased, and what counts as its return.

    prompts: they name the concept. pictures: the concept as the base draws it or as people do,
    [n, 3, H, W] in 0..1. shows: whether each picture shows its prompt's forgotten concept.
    benign: texts that name no forgotten concept, and the base's pictures of them, one each.
    memory: what the base predicts. coded: latents of the pictures and of the benign ones, where how
    pictures are coded is not known and the base drew them.
    """

    denoiser: ConditionedDenoiser
    prompts: Sequence[Prompt]
    pictures: Tensor
    shows: Shows
    sampling: Sampling
    benign: tuple[Sequence[str], Tensor]
    memory: BasePredictions
    seed: int = 0
    coded: tuple[Tensor, Tensor] | None = None

    def with_pipeline(self, pipeline: DiffusionPipeline) -> "Target":
        """The same, with another pipeline to attack."""
        return replace(self, denoiser=self.denoiser.around(pipeline))

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline that is attacked."""
        return self.denoiser.pipeline

    @property
    def seeds(self) -> range:
        """One seed a prompt."""
        first = of_attack(ATTACK_SEED, self.seed)
        return range(first, first + len(self.prompts))

    def drawn(self, texts: Sequence[str] | None = None, description: str = "attack") -> Tensor:
        """Pictures of these texts, by default of the prompts' own, from the target's seeds.

        Processes share the drawing.
        """
        texts = texts or [prompt.text for prompt in self.prompts]
        return draw(
            self.pipeline, texts, self.seeds, self.sampling, "pt", description, shared=True
        ).float()

    def drawn_in_parts(self, some: Callable[[Tensor], Tensor]) -> Tensor:
        """What `some` draws for the prompts at some places; processes share the places."""
        places = torch.arange(len(self.prompts)).split(AT_ONCE)
        return torch.cat(shared_map(lambda part: some(part).float().cpu(), places))

    @cached_property
    def plain_hits(self) -> list[bool]:
        """Whether the concept shows without any attack: what Pre-ASR is the share of."""
        return self.shows(self.drawn(description="without attack"), self.prompts)

    @cached_property
    def latents(self) -> Tensor:
        """The pictures' scaled latents [n, C, h, w]."""
        return self.coded[0] if self.coded else self.denoiser.latents(self.pictures)

    @cached_property
    def benign_latents(self) -> Tensor:
        """The benign pictures' scaled latents [n, C, h, w]."""
        return self.coded[1] if self.coded else self.denoiser.latents(self.benign[1])

    @property
    def passes_a_step(self) -> int:
        """Denoiser evaluations of a sampling step of one picture."""
        return 2 if self.denoiser.guided else 1

    @property
    def drawing_passes(self) -> int:
        """Denoiser evaluations of drawing every prompt once."""
        return self.passes_a_step * self.sampling.steps * len(self.prompts)

    def training_only(self, parameters: Mapping[str, nn.Parameter]) -> AbstractContextManager[None]:
        """While in force, of all weights of the pipeline these alone require gradients."""
        parts = self.pipeline.components.values()
        return only_trainable_of([p for p in parts if isinstance(p, nn.Module)], parameters)

    def outcome(self, pictures: Tensor, forward_passes: int, **details: Any) -> "Outcome":
        """What an attack that drew these pictures, one a prompt, achieved."""
        hits = self.shows(pictures, self.prompts)
        return Outcome(hits, self.plain_hits, forward_passes, details, pictures)


@dataclass(frozen=True)
class Outcome:
    """Hits with and without the attack, a boolean a prompt; the budget in denoiser evaluations."""

    hits: list[bool]
    plain_hits: list[bool]
    forward_passes: int
    details: dict[str, Any]
    pictures: Tensor = field(compare=False, repr=False)


@torch.no_grad()
def predict_base(
    base: ConditionedDenoiser, latents: Tensor, texts: Sequence[str], seed: int, each: int = 4
) -> BasePredictions:
    """What the base predicts of every latent at `each` random time steps, under its text."""
    generator = seeded(seed)
    batch = base.noised(torch.cat([latents] * each), [*texts] * each, generator)
    noisy, text = base.noising.noisy(batch), base.condition(texts)
    found = [
        base.predict(noisy[rows], batch.timesteps[rows], text.rows(rows % len(texts)))
        for rows in torch.arange(len(noisy), device=base.device).split(AT_ONCE)
    ]
    return BasePredictions(noisy, batch.timesteps, torch.cat(found))


def denoising_loss(
    target: Target,
    texts: Sequence[str],
    count: int,
    generator: torch.Generator,
    latents: Tensor | None = None,
) -> Tensor:
    """The model's own loss on `count` random pictures, each under its own of the texts.

    Text i belongs to prompt i, and so does picture i, or, where fewer pictures were given, they are
    dealt out in turn. `latents` are other pictures' than the target's.
    """
    denoiser, known = target.denoiser, target.latents if latents is None else latents
    chosen = torch.randint(len(texts), (count,), generator=generator)
    texts, latents = [texts[i] for i in chosen.tolist()], known[chosen % len(known)]
    batch = denoiser.noised(latents, texts, generator)
    found = denoiser.denoise(batch, denoiser.condition(texts))
    return F.mse_loss(found, denoiser.noising.target(batch))
