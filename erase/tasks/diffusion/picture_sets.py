"""The pictures of the forget and the retain set: drawn by the base itself, or given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from erase.core.fingerprint import combined
from erase.core.seeds import seeded
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt, PromptSet, by_group, sample
from erase.prompts.seeds import of_stream
from erase.support.pictures import load_folder
from erase.tasks.base import SetName
from erase.tasks.diffusion.config import MOST_TRAJECTORIES, DiffusionTaskConfig
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.sampling import OutputType, draw

PREVIEWED = 4
PictureSet = tuple[list[Prompt], Tensor]
ForgetSet = Literal["forget", "anchors"]


def batches_of(
    denoiser: ConditionedDenoiser,
    size: int,
    step_seed: int,
    prompts: Sequence[Prompt],
    latents: Tensor,
    shows: Tensor | None = None,
) -> Iterator[DiffusionBatch]:
    """One shuffled pass through prompts and their latents [N, C, h, w], noised, `size` at a time.

    shows: which of them show what is to be forgotten [N], if there is anything.
    """
    generator = seeded(step_seed)
    order = torch.randperm(len(prompts), generator=generator)
    for rows in order.split(size):
        chosen = [prompts[row] for row in rows.tolist()]
        clean = latents[rows].to(denoiser.device)
        batch = denoiser.noised(clean, [prompt.text for prompt in chosen], generator)
        anchors = [prompt.anchor for prompt in chosen]
        yield replace(batch, anchors=anchors, shows=None if shows is None else shows[rows])


@dataclass(frozen=True, eq=False)
class PictureSets:
    """Prompts and latents [N, C, h, w] of both sets, made once by the base, when first asked for.

    counts: how many pictures to draw of the forget and of the retain set. given: pictures of the
    concept to take instead of drawn ones; the forget prompts are their captions, in turn.
    """

    base: ConditionedDenoiser
    prompts: PromptSet
    sampling: Sampling
    counts: tuple[int, int]
    seed: int
    given: Sequence[Image] | None = None

    def __post_init__(self) -> None:
        if self.given is None:
            return
        if len({prompt.group for prompt in self.prompts.forget}) > 1:
            raise ValueError("Pictures can be given of one concept only; erase one at a time.")
        self.base.require_coding()

    @cached_property
    def forget(self) -> PictureSet:
        """Forget prompts and latents."""
        if self.given is not None:
            return self._encoded(self.given)
        prompts = sample(self.prompts.forget, self.counts[0], self.seed)
        return prompts, self.draw(self.base, [p.text for p in prompts], "forget set")

    @cached_property
    def anchors(self) -> PictureSet:
        """Forget prompts and latents of their anchors' pictures."""
        prompts = sample(self.prompts.forget, self.counts[0], self.seed)
        return prompts, self.draw(self.base, [p.anchor for p in prompts], "anchor pictures")

    @cached_property
    def retain(self) -> PictureSet:
        """Retain prompts and latents."""
        prompts = sample(self.prompts.retain, self.counts[1], self.seed)
        return prompts, self.draw(self.base, [p.text for p in prompts], "retain set")

    def samples(self, shown: Sequence[ForgetSet]) -> tuple[list[Prompt], Tensor, Tensor]:
        """Prompts and latents of these sets together, and which of them show the concept [N]."""
        sets = {name: getattr(self, name) for name in shown}
        prompts = [prompt for part, _ in sets.values() for prompt in part]
        shows = [torch.full((len(part),), name == "forget") for name, (part, _) in sets.items()]
        return prompts, torch.cat([latents for _, latents in sets.values()]), torch.cat(shows)

    def draw(
        self,
        denoiser: ConditionedDenoiser,
        texts: Sequence[str],
        stream: str,
        output_type: OutputType = "latent",
        places: Sequence[int] | None = None,
    ) -> Tensor:
        """What a model draws of the texts, or of those at some places, from seeds of a stream."""
        first = of_stream(stream, self.seed)
        places = range(len(texts)) if places is None else places
        chosen, seeds = [texts[i] for i in places], [first + i for i in places]
        return draw(denoiser.pipeline, chosen, seeds, self.sampling, output_type, stream)

    def heard(self, which: SetName, samples: int, drawn: bool) -> dict[str, list[str]]:
        """At most `samples` texts of a set, by group, to be read, or drawn by; fewer are drawn."""
        samples = min(samples, MOST_TRAJECTORIES) if drawn else samples
        prompts = self.prompts.forget if which == "forget" else self.prompts.retain
        groups = by_group(sample(prompts, min(samples, len(prompts)), self.seed))
        # Guidance reads the empty prompt beside every other.
        beside = [""] if which == "retain" and not drawn else []
        return {name: [*(one.text for one in group), *beside] for name, group in groups.items()}

    def preview(self, denoiser: ConditionedDenoiser) -> Tensor:
        """What a model draws of PREVIEWED forget prompts, then of as many retained ones."""
        parts = (self.prompts.forget, self.prompts.retain)
        samples = (sample(part, PREVIEWED, self.seed)[:PREVIEWED] for part in parts)
        texts = [prompt.text for chosen in samples for prompt in chosen]
        return self.draw(denoiser, texts, "looking at the model", "pt").float()

    def fingerprints(self) -> dict[str, str]:
        """What tells both sets from others: their prompts, and their pictures or their seeds."""
        drawn = [f"{count} {self.seed} {self.sampling}" for count in self.counts]
        given = [sha256(picture.tobytes()).hexdigest() for picture in self.given or ()]
        redirects = (f"{prompt.text} > {prompt.anchor}" for prompt in self.prompts.forget)
        retained = (prompt.text for prompt in self.prompts.retain)
        return {
            "forget set": combined([*redirects, *(given or drawn[:1])]),
            "retain set": combined([*retained, drawn[1]]),
        }

    @torch.no_grad()
    def _encoded(self, pictures: Sequence[Image]) -> PictureSet:
        latents = [self.base.latents(self.base.ready(picture)) for picture in pictures]
        scaled = torch.cat(latents).cpu()
        return sample(self.prompts.forget, len(scaled), self.seed), scaled


def new_sets(
    denoiser: ConditionedDenoiser,
    prompts: PromptSet,
    sampling: Sampling,
    config: DiffusionTaskConfig,
    seed: int,
    given: Sequence[Image] | None = None,
) -> PictureSets:
    """The sets that a config asks for; ValueError if not all is read that tells the concept."""
    adversary = config.adversary_of(denoiser)
    lengthened = adversary.lengthened if adversary else list
    texts = lengthened([prompt.text for prompt in prompts.forget])
    anchors = lengthened([prompt.anchor for prompt in prompts.forget])
    denoiser.require_read(texts, anchors)
    given = load_folder(Path(config.forget_folder)) if config.forget_folder else given
    counts = config.forget_pictures, config.retain_pictures
    return PictureSets(denoiser, prompts, sampling, counts, seed, given)
