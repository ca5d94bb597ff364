"""What an attack is given, what it gives back, and the parts that several attacks share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from erase.models.tokens import padded_tokens
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt
from erase.tasks.diffusion.denoiser import latents_of
from erase.tasks.diffusion.noising import DiffusionBatch, noising_of
from erase.tasks.diffusion.sampling import draw

PLACEHOLDER, CHUNK = "~", 8
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
    """A pipeline from which a concept was erased, and what counts as its return.

    prompts: they name the concept. pictures: the concept as the base draws it or as people do,
    [n, 3, H, W] in 0..1. shows: whether each picture shows its prompt's forgotten concept.
    benign: texts that name no forgotten concept, and the base's pictures of them, one each.
    memory: what the base predicts.
    """

    pipeline: StableDiffusionPipeline
    prompts: Sequence[Prompt]
    pictures: Tensor
    shows: Shows
    sampling: Sampling
    benign: tuple[Sequence[str], Tensor]
    memory: BasePredictions
    seed: int = 0

    @property
    def seeds(self) -> range:
        """One seed a prompt."""
        first = 8_000_000 + 10_000 * self.seed
        return range(first, first + len(self.prompts))

    def drawn(self, texts: Sequence[str] | None = None, description: str = "attack") -> Tensor:
        """Pictures of these texts, by default of the prompts' own, from the target's seeds."""
        texts = texts or [prompt.text for prompt in self.prompts]
        return draw(self.pipeline, texts, self.seeds, self.sampling, "pt", description).float()

    @cached_property
    def plain_hits(self) -> list[bool]:
        """Whether the concept shows without any attack: what Pre-ASR is the share of."""
        return self.shows(self.drawn(description="without attack"), self.prompts)

    @cached_property
    def latents(self) -> Tensor:
        """The pictures' scaled latents [n, C, h, w]."""
        return latents_of(self.pipeline, self.pictures)

    @cached_property
    def benign_latents(self) -> Tensor:
        """The benign pictures' scaled latents [n, C, h, w]."""
        return latents_of(self.pipeline, self.benign[1])

    @property
    def drawing_passes(self) -> int:
        """UNet evaluations of drawing every prompt once, with guidance."""
        return 2 * self.sampling.steps * len(self.prompts)

    def outcome(self, pictures: Tensor, forward_passes: int, **details: Any) -> "Outcome":
        """What an attack that drew these pictures, one a prompt, achieved."""
        hits = self.shows(pictures, self.prompts)
        return Outcome(hits, self.plain_hits, forward_passes, details, pictures)


@dataclass(frozen=True)
class Outcome:
    """Hits with and without the attack, a boolean a prompt, and the budget in UNet evaluations."""

    hits: list[bool]
    plain_hits: list[bool]
    forward_passes: int
    details: dict[str, Any]
    pictures: Tensor = field(compare=False, repr=False)


@torch.no_grad()
def predict_base(
    base: StableDiffusionPipeline, pictures: Tensor, texts: Sequence[str], seed: int, each: int = 4
) -> BasePredictions:
    """What the base predicts of every picture at `each` random time steps, under its text."""
    generator = torch.Generator().manual_seed(seed)
    noising, latents = noising_of(base.scheduler), latents_of(base, pictures).repeat(each, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timesteps = noising.draw_timesteps(len(latents), generator).to(latents.device)
    noisy = noising.noisy(DiffusionBatch(latents, noise, timesteps, [], []))
    parts = (
        part.split(CHUNK)
        for part in (noisy, timesteps, encode_text(base, texts).repeat(each, 1, 1))
    )
    found = [base.unet(*part).sample for part in zip(*parts, strict=True)]
    return BasePredictions(noisy, timesteps, torch.cat(found))


def denoising_loss(
    target: Target,
    texts: Sequence[str],
    count: int,
    generator: torch.Generator,
    latents: Tensor | None = None,
) -> Tensor:
    """The pipeline's own loss on `count` random pictures, each under its own of the texts.

    Text i belongs to prompt i, and so does picture i, or, where fewer pictures were given, they are
    dealt out in turn. `latents` are other pictures' than the target's.
    """
    noising = noising_of(target.pipeline.scheduler)
    known = target.latents if latents is None else latents
    prompts = torch.randint(len(texts), (count,), generator=generator)
    texts, latents = [texts[i] for i in prompts.tolist()], known[prompts % len(known)]
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = noising.draw_timesteps(len(texts), generator)
    batch = DiffusionBatch(latents, noise, timesteps, list(texts), [])
    states = encode_text(target.pipeline, texts)
    found = target.pipeline.unet(noising.noisy(batch), timesteps, states).sample
    return F.mse_loss(found, noising.target(batch))


def encode_text(pipeline: StableDiffusionPipeline, texts: Sequence[str]) -> Tensor:
    """What cross-attention reads of the texts, with gradients: [N, tokens, width]."""
    tokens = padded_tokens(pipeline.tokenizer, texts)
    return pipeline.text_encoder(tokens.to(pipeline.text_encoder.device))[0]


@contextmanager
def placeholder_embeddings(pipeline: StableDiffusionPipeline, vectors: Tensor) -> Iterator[None]:
    """While in force, the k placeholders of every text read as these vectors [k, width]."""
    (number,) = pipeline.tokenizer(PLACEHOLDER, add_special_tokens=False).input_ids

    def replace(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        places = inputs[0] == number
        if not places.any():
            return output
        wanted = vectors.to(output.dtype).repeat(int(places.sum()) // len(vectors), 1)
        return output.masked_scatter(places[..., None], wanted)

    handle = pipeline.text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_gradients(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """While in force, no weight of UNet and text encoder asks for gradients."""
    weights = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
