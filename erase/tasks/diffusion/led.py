"""Draws of a pipeline that told of itself, led to a picture for some steps, then left alone."""

from dataclasses import replace

import torch
from torch import Tensor

from erase.core.seeds import seeded
from erase.models.calling import PROMPT
from erase.models.coding import one_frame
from erase.models.cuts import cut_out, numbers_of
from erase.models.ladder import Ladder, leading
from erase.models.listening import Call, Draw, HeardEnoughError
from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.learned import LearnedDenoiser

NEAR = 1e-2  # of its length: latents of the same way with and without guidance


class Led:
    """Leads draws by the first `steps` answers, as a draw without guidance is led.

    Raises ValueError where the levels of so short a draw can't be proved.
    """

    def __init__(self, denoiser: LearnedDenoiser, sampling: Sampling, steps: int):
        self._denoiser, self._steps = denoiser, steps
        self._known, self._plain = denoiser.known, denoiser.listener(sampling.size)
        drawer = self._known.calling.drawer(denoiser.pipeline, sampling, "np")
        self._own = replace(drawer, modules=self._known.calling.called)
        self._sampling = sampling
        try:
            self._ladder = self._known.levels(self._plain).found(sampling.steps) if steps else None
        except (ValueError, LookupError, ArithmeticError) as error:
            ours = isinstance(error, ValueError)  # others are its call's, as of a single step
            why = error if ours else f"its own call fails there ({error})"
            raise ValueError(
                f"A {self._known.pipeline} can't be led in {sampling.steps} steps: {why}; take "
                "more of them, another scheduler, or other attacks."
            ) from error

    def require(self) -> None:
        """ValueError where a draw leaves the way that it is led; no denoiser takes a step."""
        if self._ladder:
            picture = torch.randn(self._ladder.shape, generator=seeded(0))
            self._led(self._ladder, picture, PROMPT, 0, whole=False)

    @torch.no_grad()
    def drawn(self, latents: Tensor, prompt: str, seed: int) -> Tensor:
        """The picture [1, 3, H, W] of a prompt and a seed that is led to latents [...] first."""
        if not self._ladder:
            return one_frame(self._own.draw(prompt, seed).output)
        return one_frame(self._led(self._ladder, latents, prompt, seed).output)

    @torch.no_grad()
    def _led(
        self, ladder: Ladder, latents: Tensor, prompt: str, seed: int, whole: bool = True
    ) -> Draw:
        """The draw that is led, to its end or as far as it is."""
        answer = leading(ladder, numbers_of(latents))

        def by_levels(call: Call, raw: Tensor) -> Tensor | None:
            return answer(call, raw) if call.who in self._known.names else torch.zeros_like(raw)

        way = self._plain.draw(
            prompt, seed, answer=by_levels, num_inference_steps=self._sampling.steps
        )
        calls = (call for call in way.calls if call.who in self._known.names)
        said = {call.step: call.raw for call in calls if call.step < self._steps}

        def as_on_the_way(call: Call, raw: Tensor) -> Tensor | None:
            if call.step not in said and not whole:
                raise HeardEnoughError
            return self._fitting(said[call.step], raw) if call.step in said else None

        draw = self._own.draw(prompt, seed, answer=as_on_the_way)
        self._require_led(draw, way)
        return draw

    def _fitting(self, said: Tensor, raw: Tensor) -> Tensor:
        """An answer for one picture as one for all rows, whatever tokens are beside it."""
        assert self._ladder
        cut = self._ladder.prediction
        picture, found = cut_out(said, cut), torch.zeros_like(raw)
        part = cut_out(found, tuple(one for one in cut if one[0]))
        part.copy_(picture.repeat(len(part) // len(picture), *[1] * (picture.ndim - 1)))
        return found

    def _require_led(self, draw: Draw, way: Draw) -> None:
        ends = ([*one.samples, one.result][self._steps] for one in (draw, way))
        ours, theirs = map(numbers_of, ends)
        if len(ours) != len(theirs) or (ours - theirs).norm() > NEAR * theirs.norm():
            raise ValueError(
                f"A {self._known.pipeline} that draws under guidance can't be led to a picture; "
                "set a guidance scale of 1, or try other attacks."
            )
