"""Levels of noise in a draw, and how each kind of prediction mixes picture and noise at them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.models.cuts import Cut, cut_out, numbers_of
from erase.models.listening import Answer, Call, Leaves, leaves


@dataclass(frozen=True)
class Level:
    """One step of a draw: what the denoiser is told of time, and how its input is mixed.

    The latents it is given are `clean` times the picture plus `noise` times unit noise; its answer
    is to be `picture` times the picture plus `unit` times the noise.
    """

    who: str
    told: Leaves
    clean: float
    noise: float
    picture: float
    unit: float


@dataclass(frozen=True)
class Ladder:
    """The levels of a draw of some size, and where in arguments and answer the latents lie.

    latents: the denoiser's argument. places: where in it the latents are, every time they are.
    prediction: where in its answer. deviation: of the noise that a draw begins with, per `noise`.
    error: how far draws that were answered for by these levels ended from the picture meant.
    """

    kind: str
    levels: tuple[Level, ...]
    latents: str
    places: tuple[Cut, ...]
    prediction: Cut
    shape: tuple[int, ...]
    deviation: float
    error: float


Mix = tuple[str, list[tuple[float, float, float, float]]]  # kind; clean, noise, picture, unit


def of_noise(pairs: Sequence[tuple[float, float]]) -> Iterator[Mix]:
    """By each pair of picture and noise, what is predicted: either, or what turns one to both."""
    yield "noise", [(a, b, 0.0, 1.0) for a, b in pairs]
    yield "v", [(a, b, -b, a) for a, b in pairs]
    yield "picture", [(a, b, 1.0, 0.0) for a, b in pairs]


def flow(levels: list[float], scale: float, towards_noise: bool) -> Mix:
    """A straight line from the picture over `scale` to the noise, and the velocity along it."""
    sign = 1.0 if towards_noise else -1.0
    mixes = [((1 - level) / scale, level, -sign / scale, sign) for level in levels]
    return "velocity" if towards_noise else "velocity to the picture", mixes


def leading(ladder: Ladder, picture: Tensor) -> Answer:
    """Answers that lead a draw to these latents [n], whatever noise it holds."""

    def answer(call: Call, raw: Tensor) -> Tensor:
        level, said = ladder.levels[call.step], torch.zeros_like(raw)
        latents = numbers_of(cut_out(leaves(call.arguments)[ladder.latents], ladder.places[0]))
        unit = (latents - level.clean * picture) / level.noise
        part = cut_out(said, ladder.prediction)
        part.copy_((level.picture * picture + level.unit * unit).reshape(part.shape))
        return said

    return answer
