"""The denoisers of a pipeline that told of itself: prompts, noise and predictions as it draws."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from erase.core.activations import hooked
from erase.core.names import way_to
from erase.core.precision import at_least_float32
from erase.models.arguments import LONGER
from erase.models.calling import PROMPT, nothing
from erase.models.coding import Coding, coding_of, one_frame
from erase.models.cuts import cut_out
from erase.models.family import family_of
from erase.models.ladder import Ladder, Level
from erase.models.learned import LearnedFamily
from erase.models.listening import Listener, leaves, raw_of, replaced, same
from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.denoiser import PLACEHOLDER, ConditionedDenoiser
from erase.tasks.diffusion.heard import Calls, Heard, HeardCondition
from erase.tasks.diffusion.ladder_noising import LearnedNoising

FURTHER = " ".join([LONGER] * 8)


class LearnedDenoiser(ConditionedDenoiser):
    """What a pipeline that no family knows makes of prompts, as its own calls tell.

    heard: what it is given for prompts, kept from one such denoiser to the next.
    """

    noising: LearnedNoising

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        size: int = 0,
        guidance: float | None = None,
        like: "LearnedDenoiser | None" = None,
    ):
        self._like = like
        super().__init__(pipeline, size, guidance)
        self._heard: Heard = like._heard if like else Heard()

    def _noising(self) -> LearnedNoising:
        return self._like.noising if self._like else LearnedNoising(self._levels)

    def _levels(self) -> Ladder:
        with torch.no_grad():
            return self.known.levels(self.listener(self.side)).found()

    @property
    def known(self) -> LearnedFamily:
        """What was learned."""
        assert self.family.learned
        return self.family.learned

    def listener(self, side: int | None = None) -> Listener:
        """What listens to its calls for pictures `side` pixels wide, by default the smallest."""
        calling = self.known.calling
        told = calling.guidance and calling.unguided is None  # as if distilled under guidance
        given = {calling.guidance: self.guidance} if told else {}
        return calling.listener(self.pipeline, side, **given)

    @cached_property
    def coding(self) -> Coding:
        """How pictures are coded; ValueError where that can't be proved."""
        if self._like:
            return self._like.coding
        try:
            with torch.no_grad():
                return coding_of(self.listener(self.side))
        except ValueError as error:
            raise ValueError(
                f"How a {self.known.pipeline} codes pictures is not known: {error}; leave out "
                "pictures of your own."
            ) from error

    def require_coding(self) -> None:
        """ValueError where pictures can't be coded."""
        _ = self.coding

    def ready(self, picture: Image) -> Tensor:
        """A picture [1, 3, H, W] in 0..1, as large as it draws them."""
        return VaeImageProcessor(do_normalize=False).preprocess(picture, *self.coding.said[-2:])

    def latents(self, pictures: Tensor) -> Tensor:
        """Latents [n, ...] of pictures in 0..1, of films with as many equal frames."""
        found = [self.coding.latents(self.pipeline, picture) for picture in pictures]
        return torch.cat(found).to(self.device, at_least_float32(self.dtype))

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in 0..1 of latents, as the pipeline itself decodes them."""
        listener, forms = self.listener(self.side), dict[str, Any]()

        def decoded(one: Tensor) -> Tensor:
            draw = listener.draw(
                PROMPT, answer=nothing, forms=forms, ending=one[None], output_type="np"
            )
            return one_frame(draw.output)

        return torch.cat([decoded(one) for one in latents])

    def around(self, pipeline: DiffusionPipeline) -> "LearnedDenoiser":
        """The same of another pipeline."""
        return LearnedDenoiser(pipeline, self.side, self.guidance, self)

    @property
    def reading(self) -> dict[str, nn.Module]:
        """All that text may pass through."""
        named = self.pipeline.components.items()
        return {n: m for n, m in named if isinstance(m, nn.Module) and n != "vae"}

    @property
    def word_encoders(self) -> dict[str, PreTrainedModel]:
        """The CLIP text encoders whose words reach the denoisers."""
        return {name: getattr(self.pipeline, name) for name in self.known.words}

    def condition(self, prompts: Sequence[str]) -> HeardCondition:  # type: ignore[override]
        """What the denoisers are given for the prompts, each alone.

        It has gradients where words are searched, and where what reads them learns.
        """
        reading = self._read_by()
        self._heard.follow(reading)
        learns = any(weight.requires_grad for weight in reading)
        anew = {p: self._given(p) for p in dict.fromkeys(prompts) if learns or PLACEHOLDER in p}
        return HeardCondition([anew.get(one) or self._condition(one) for one in prompts])

    def _read_by(self) -> list[nn.Parameter]:
        """The weights that read prompts before the denoisers are asked."""
        before = [m for name, m in self.reading.items() if name not in self.known.calling.called]
        return [weight for module in before for weight in module.parameters()]

    @torch.no_grad()
    def _condition(self, prompt: str) -> Calls:
        if prompt not in self._heard:
            self._heard.keep(prompt, self._given(prompt))
        return self._heard[prompt]

    def _given(self, prompt: str) -> Calls:
        until = () if self.known.call else self.known.names
        listener = replace(self.listener(self.side), grads=torch.is_grad_enabled())
        draw = listener.draw(prompt, answer=nothing, until=until)
        return {name: draw.of(name)[self.known.call].arguments for name in self.known.names}

    def predict(self, noisy: Tensor, timesteps: Tensor, text: HeardCondition) -> Tensor:  # type: ignore[override]
        """The denoisers' output, as the latents are [N, ...], for noised ones at levels [N]."""
        levels = [self.noising.ladder.levels[place] for place in timesteps.tolist()]
        calls = zip(noisy, levels, text.calls, strict=True)
        return torch.cat([self._predicted(latents[None], *call) for latents, *call in calls])

    def _predicted(self, noisy: Tensor, level: Level, calls: Mapping[str, Any]) -> Tensor:
        ladder = self.noising.ladder

        def given(name: str, leaf: Any) -> Any:
            if name != ladder.latents:
                return level.told.get(name, leaf)
            leaf = leaf.clone()
            for place in ladder.places:
                part = cut_out(leaf, place)
                part.copy_(noisy.reshape(part.shape))
            return leaf

        module = getattr(self.pipeline, level.who)
        said = raw_of(module(**replaced(dict(calls[level.who]), given)))
        return cut_out(said, ladder.prediction).reshape(noisy.shape).to(noisy.dtype)

    @torch.no_grad()
    def require_read(self, texts: Sequence[str], anchors: Sequence[str]) -> None:
        """ValueError for a text that the denoisers are given no differently than its anchor."""
        for text, anchor in zip(texts, anchors, strict=True):
            ours, theirs = map(leaves, self.condition([text, anchor]).calls)
            if text != anchor and all(same(ours[n], theirs.get(n)) for n in ours):
                raise ValueError(
                    f"The prompt {text[:40]!r}... names the concept, or its anchor, beyond the "
                    "tokens that are read of a prompt; shorten the template or the names."
                )

    @cached_property
    def _as_long(self) -> dict[str, bool]:
        # Some fill prompts up to a multiple of tokens, so that only a much longer one tells.
        one, *longer = map(self._readings, (PROMPT, LONGER, FURTHER))
        return {
            site: all(len(rows) == len(other[site]) for other in longer)
            for site, rows in one.items()
        }

    def placed(self, site: str, rows: Tensor) -> Tensor:
        """What was read at a place: without positions where prompts' lengths differ."""
        return rows if self._as_long[site] else rows.flatten(0, 1)

    @torch.no_grad()
    def readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of the prompts at each place where text enters: [N, tokens, width].

        [1, all tokens, width] where prompts have not as many tokens.
        """
        parts = [self._readings(prompt) for prompt in prompts]
        read = {}
        for site in parts[0]:
            rows = [part[site] for part in parts]
            read[site] = torch.stack(rows) if self._as_long[site] else torch.cat(rows)[None]
        return read

    def compared(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The same at the places where all prompts are read as as many tokens."""
        return {site: rows for site, rows in self.readings(prompts).items() if self._as_long[site]}

    def _readings(self, prompt: str) -> dict[str, Tensor]:
        """What is read of one prompt at each place [tokens, width], of the smallest picture."""
        read: dict[str, list[Tensor]] = {}
        count, row = self.known.rows

        def hear(site: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs = given[0]
            mine = inputs[row : row + 1] if inputs.ndim > 2 and len(inputs) == count else inputs
            read.setdefault(site, []).append(mine.detach().flatten(0, -2).clone())

        layers = {site: way_to(self.modules, f"{site}.weight")[-1] for site in self.known.enters}
        with hooked(m.register_forward_pre_hook(partial(hear, n)) for n, m in layers.items()):
            # A module is called but once where its answer is made up.
            self.listener().draw(prompt, answer=None if self.known.call else nothing)
        return {site: parts[self.known.call] for site, parts in read.items()}

    def last_readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """ValueError: which of a prompt's tokens is its last word's can't be heard."""
        raise ValueError(
            f"Which token is a prompt's last is not known of a {self.known.pipeline}; leave tokens "
            "at all."
        )

    def redirected_readings(
        self, prompts: Sequence[str], anchors: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What is read of the prompts at each place, and what of their anchors: both [n, width].

        Tokens are paired by what is read of them, in order.
        """
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for prompt, anchor in zip(prompts, anchors, strict=True):
            ours, theirs = self._readings(prompt), self._readings(anchor)
            for site, rows in ours.items():
                wanted = theirs[site]
                found.setdefault(site, []).append((rows, wanted[paired_rows(rows, wanted)]))
        return {
            site: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
            for site, pairs in found.items()
        }


def paired_rows(rows: Tensor, others: Tensor) -> Tensor:
    """For each row [n, d], the place of the other [m, d] that stands for it, in order [n].

    The path of least cost through 1 - cosine, by dynamic time warping (Sakoe and Chiba, 1978); of
    several that stand for one row the last.
    """
    ours, theirs = (nn.functional.normalize(one.cpu().double(), dim=1) for one in (rows, others))
    costs = 1 - ours @ theirs.T
    totals = [costs[0].cumsum(0)]
    for row in costs[1:]:
        before = totals[-1]
        least = torch.minimum(before, torch.cat([before[:1], before[:-1]]))
        along = row.cumsum(0)
        totals.append(along + torch.cummin(least - along + row, 0).values)
    place = len(others) - 1
    places = [place]
    for above, here in zip(totals[-2::-1], totals[:0:-1], strict=True):
        while place and here[place - 1] < torch.minimum(above[place], above[place - 1]):
            place -= 1
        if place and above[place - 1] <= above[place]:
            place -= 1
        places.append(place)
    return torch.tensor(places[::-1])


def denoiser_of(pipeline: DiffusionPipeline, sampling: Sampling) -> ConditionedDenoiser:
    """Latents, time and prompts of a pipeline, as its family has it or as it tells itself."""
    kind = LearnedDenoiser if family_of(pipeline).learned else ConditionedDenoiser
    return kind(pipeline, sampling.size, sampling.guidance_scale)
