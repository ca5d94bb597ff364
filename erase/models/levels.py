"""How much noise a denoiser's input holds at each step of a draw, found by answering for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from erase.core.seeds import seeded
from erase.models.arguments import Denoiser
from erase.models.calling import PROMPT, nothing
from erase.models.cuts import Cut, cut_out, cuts, fitted, number_of, numbers_of, places_of
from erase.models.ladder import Ladder, Level, Mix, flow, leading, of_noise
from erase.models.listening import Answer, Call, Draw, Listener, leaves

# Of the draws that are answered for: some clamp the last levels of many steps, and some step to
# levels that are not in their table where 1000 times are no multiple of the steps.
STEPS = (24, 12, 25)
EXACT, LAST, SPREAD = 2e-3, 0.06, 0.3


class Levels:
    """Finds the ladder of a listener's draws; the `denoisers` hear the prompt.

    call: which of several calls in a step does. The first denoiser's latents and times are the
    others' too.
    """

    def __init__(self, listener: Listener, denoisers: Sequence[Denoiser], call: int):
        self._listener, self._call = listener, call
        self._hears = [one.name for one in denoisers]
        self._latents = denoisers[0].given("latents")[0]
        self._told = denoisers[0].given("time")
        self._forms: dict[str, Any] = {}

    def found(self, steps: int = 0) -> Ladder:
        """The ladder of a draw of so many steps, by default of many.

        Raises ValueError if none of the known kinds is what the pipeline draws by.
        """
        reasons: dict[str, list[str]] = {}
        with _unclipped(self._listener.pipeline.scheduler):
            if steps:
                return self._found(steps)
            for count in STEPS:
                try:
                    return self._found(count)
                except ValueError as error:
                    reasons.setdefault(str(error), []).append(str(count))
        told = (f"in {' and '.join(counts)} steps {why}" for why, counts in reasons.items())
        raise ValueError("; ".join(told))

    def _found(self, steps: int) -> Ladder:
        self._options: dict[str, Any] = {"num_inference_steps": steps}
        self._still = self._answered(nothing)
        self._asked = asked = self._prompted(self._still)
        given = leaves(asked[0].arguments)[self._latents]
        sample = self._still.samples[0]
        self._places = tuple(places_of(sample, given))
        if not self._places:
            raise ValueError(
                f"its latents are no part of what {asked[0].who} is given as {self._latents}"
            )
        whole = torch.randn(asked[0].raw.shape, generator=seeded(1))
        self._answer = whole
        self._moved = self._answered(_always(whole))
        self._cut = self._prediction()
        failures = []
        for kind, mixes in chain(
            self._by_lines(), self._by_table(), self._by_sigmas(), self._by_time()
        ):
            error = self._error(mixes)
            if error < 1:
                return self._ladder(kind, mixes, error)
            failures.append(f"{kind} by {error:.1e}")
        raise ValueError(
            f"no known kind of prediction explains its steps ({', '.join(failures) or 'none fits'})"
        )

    def _ladder(self, kind: str, mixes: list, error: float) -> Ladder:
        told = [
            Level(call.who, {k: leaves(call.arguments)[k] for k in self._told}, *mix)
            for call, mix in zip(self._asked, mixes, strict=True)
        ]
        begins = self._latents_of(self._asked[0])
        return Ladder(
            kind, tuple(told), self._latents, self._places, self._cut,
            tuple(self._still.samples[0].shape), _deviation(begins, mixes[0][1]), error,
        )  # fmt: skip

    def _answered(self, answer: Answer) -> Draw:
        def said(call: Call, raw: Tensor) -> Tensor | None:
            return (answer if call.who in self._hears else nothing)(call, raw)

        return self._listener.draw(PROMPT, answer=said, forms=self._forms, **self._options)

    def _prompted(self, draw: Draw) -> list[Call]:
        """One call a step: that which hears the prompt."""
        found = []
        for step in range(len(draw.samples)):
            calls = [c for c in draw.calls if c.step == step and c.who in self._hears]
            found.append(calls[min(self._call, len(calls) - 1)])
        return found

    def _latents_of(self, call: Call) -> Tensor:
        """The latents within a call's argument, flat."""
        given = leaves(call.arguments)[self._latents]
        return numbers_of(cut_out(given, self._places[0]))

    def _prediction(self) -> Cut:
        """Where in the answer the prediction is: what the end depends on.

        Where all of it at once makes no sum, as a variance beside it does not, one part at a time.
        """
        wanted = numbers_of(self._moved.result) - numbers_of(self._still.result)
        ways = list(cuts(self._answer.shape, wanted.numel()))
        left = [fitted(wanted, cut_out(self._answer, cut))[1] for cut in ways]
        if min(left) < self._exact:
            return ways[left.index(min(left))]
        whole = self._answer
        for cut in ways:
            self._answer = torch.zeros_like(whole)
            cut_out(self._answer, cut).copy_(cut_out(whole, cut))
            self._moved = self._answered(_always(self._answer))
            moved = numbers_of(self._moved.result) - numbers_of(self._still.result)
            if moved.any() and fitted(moved, cut_out(whole, cut))[1] < 0.1:
                return cut
        raise ValueError("no part of its answer is what the scheduler is given")

    def _by_lines(self) -> Iterator[Mix]:
        """By what constant answers make of the latents, step by step, and by nothing else.

        A velocity moves them along a line, a picture is where they go.
        """
        begin = self._latents_of(self._asked[0])
        answer = numbers_of(cut_out(self._answer, self._cut))
        stay = [fitted(self._latents_of(call), begin) for call in self._asked]
        moved = self._prompted(self._moved)
        apart = [
            self._latents_of(b) - self._latents_of(a)
            for a, b in zip(self._asked, moved, strict=True)
        ]
        ends = numbers_of(self._moved.result - self._still.result)
        shares = [fitted(one, answer)[0] for one in apart]
        end, left = fitted(ends, answer)
        if max(residual for _, residual in stay) > self._exact or left > self._exact:
            return
        kept = [found for found, _ in stay]
        stays = float(numbers_of(self._still.result).norm() / begin.norm())
        if max(abs(end - 1), stays) < self._exact:
            yield "picture", [(a, b, 1.0, 0.0) for a, b in zip(shares, kept, strict=True)]
        scale, left = fitted(self._still.result, begin)
        if scale and max(abs(one - 1) for one in kept) < self._exact and left < self._exact:
            last = end / scale
            levels = [abs(share - last) for share in shares]
            yield flow(levels, scale, last < 0)

    def _by_table(self) -> Iterator[Mix]:
        """By the scheduler's own table of how much of a picture is kept at a time step."""
        scheduler = self._listener.pipeline.scheduler
        times = [number_of(time) for time in self._still.times]
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is not None:
            if any(time != int(time) or not 0 <= time < len(table) for time in times):
                return
            kept = [float(table[int(time)]) for time in times]
        elif hasattr(scheduler, "_alpha_cumprod"):  # Wuerstchen's, a function of the time
            kept = [float(scheduler._alpha_cumprod(torch.tensor(time), "cpu")) for time in times]
        else:
            return
        yield from of_noise([(one**0.5, (1 - one) ** 0.5) for one in kept])

    def _by_sigmas(self) -> Iterator[Mix]:
        """By the scheduler's noise per picture, where it scales both to one before they are read.

        Those of two calls a step have the noise half-way at every other call.
        """
        scheduler, count = self._listener.pipeline.scheduler, len(self._asked)
        own = getattr(scheduler, "sigmas", ())[:count]
        between = getattr(scheduler, "sigmas_interpol", own)[:count]
        if len(own) == len(between) == count:
            sigmas = [float((between if i % 2 else own)[i]) for i in range(count)]
            sizes = [(sigma**2 + 1) ** 0.5 for sigma in sigmas]
            yield from of_noise([(1 / d, s / d) for s, d in zip(sigmas, sizes, strict=True)])

    def _by_time(self) -> Iterator[Mix]:
        """By the time that the denoiser is told, where that is the level of the last step."""
        last = self._prompted(self._still)[-1]
        until = len(self._asked) - 1

        def answer(call: Call, raw: Tensor) -> Tensor:
            return self._answer.to(raw) if call.step == until else torch.zeros_like(raw)

        ended = self._answered(answer)
        scale, left = fitted(self._still.result, self._latents_of(last))
        moved = numbers_of(ended.result) - numbers_of(self._still.result)
        share, rest = fitted(moved, cut_out(self._answer, self._cut))
        if max(left, rest) > self._exact or not scale:
            return
        level = share / scale
        for leaf in self._told:
            times = [number_of(leaves(call.arguments)[leaf]) for call in self._asked]
            for told in (lambda t: t, lambda t: 1 - t, lambda t: t / 1000, lambda t: 1 - t / 1000):
                if abs(told(times[-1]) - abs(level)) < self._exact:
                    yield flow([told(time) for time in times], scale, level < 0)

    def _error(self, mixes: list[tuple[float, float, float, float]]) -> float:
        """How far two draws stray that are answered for by these levels, in tolerances.

        They are to lead to two pictures from the same noise: at every step what the draws have not
        in common is the pictures' share, what is left is noise of the same deviation all along, and
        they end at the pictures.
        """
        if min(noise for _, noise, _, _ in mixes) <= 0:
            return float("inf")
        count = self._still.result.numel()
        pictures = torch.randn(2, count, generator=seeded(2)).double()
        ladder = self._ladder("", mixes, 0.0)
        draws = [self._answered(leading(ladder, picture)) for picture in pictures]
        apart = pictures[0] - pictures[1]
        errors = [
            float((numbers_of(draw.result) - picture).norm() / picture.norm()) / LAST
            for draw, picture in zip(draws, pictures, strict=True)
        ]
        begun = 0.0
        for a, b, (clean, noise, _, _) in zip(*map(self._prompted, draws), mixes, strict=True):
            ours, theirs = self._latents_of(a), self._latents_of(b)
            if a.step:
                off = float((ours - theirs - clean * apart).norm() / apart.norm())
                # Draws begin with noise alone, where a level may hold a little of a picture.
                begun_with = mixes[0][0] * noise / mixes[0][1]
                errors.append(off / (self._exact + 1.05 * begun_with))
            spread = float((ours - (clean if a.step else 0) * pictures[0]).std()) / noise
            begun = begun or spread
            if noise > 0.05:
                errors.append(abs(spread / begun - 1) / SPREAD)
        return max(errors) if all(x == x for x in errors) else float("inf")

    @property
    def _exact(self) -> float:
        half = self._still.samples[0].dtype.itemsize < 4 or self._asked[0].raw.dtype.itemsize < 4
        return 16 * EXACT if half else EXACT


def _always(said: Tensor) -> Answer:
    """One answer [...] to all calls."""
    return lambda call, raw: said.to(raw)


@contextmanager
def _unclipped(scheduler: Any) -> Iterator[None]:
    """While in force, the scheduler clips no picture, which no sum of its inputs would explain."""
    config = scheduler.config
    set_so = {name: config[name] for name in ("clip_sample", "thresholding") if name in config}
    scheduler.register_to_config(**dict.fromkeys(set_so, False))
    try:
        yield
    finally:
        scheduler.register_to_config(**set_so)


def _deviation(begins: Tensor, noise: float) -> float:
    """Of the noise that a draw begins with, per unit; 1 where it is that within its accuracy."""
    found = float(begins.std()) / noise
    return 1.0 if abs(found - 1) < 4 / len(begins) ** 0.5 else found
