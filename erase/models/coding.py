"""How a pipeline codes pictures, heard where it hands its last latents to what decodes them."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erase.core.precision import computed_in_float32
from erase.models.calling import PROMPT, nothing
from erase.models.cuts import numbers_of
from erase.models.listening import HeardEnoughError, Listener, overridden, raw_of

CODED, SHOWN = 1e-3, 2e-2  # how far what is put in may be from what comes out, in shares of it


@dataclass(frozen=True)
class Coding:
    """How pictures of one size become the latents that a draw ends with.

    coder: the component that codes; none where the latents are the picture. places: which of the
    latents' numbers each number is made of that is decoded [n], and how: scaled, then shifted [n].
    shape: of the latents. decoded: of what is decoded. said: of what that is decoded to, its
    last two numbers the pictures' height and width.
    """

    coder: str
    places: Tensor
    scale: Tensor
    shift: Tensor
    shape: tuple[int, ...]
    decoded: tuple[int, ...]
    said: tuple[int, ...]

    @torch.no_grad()
    def latents(self, pipeline: DiffusionPipeline, picture: Tensor) -> Tensor:
        """The latents of a picture [3, H, W] in 0..1, of a film with as many equal frames."""
        coded = self.encoded(pipeline, picture).flatten()
        found = torch.empty(prod(self.shape)).to(coded)
        found[self.places.to(coded.device)] = (coded - self.shift.to(coded)) / self.scale.to(coded)
        return found.view(self.shape)

    def encoded(self, pipeline: DiffusionPipeline, picture: Tensor) -> Tensor:
        """What the coder makes of a picture, and is to decode; ValueError if that has no place."""
        if self.said[1] == 4:  # all of it is seen
            picture = torch.cat([picture, torch.ones_like(picture[:1])])
        frames = picture[None] if len(self.said) < 5 else picture[None, :, None]
        frames = (2 * frames - 1).expand(self.said)
        if not self.coder:
            return frames
        coder = getattr(pipeline, self.coder)
        with computed_in_float32([coder]):
            (found, *_) = coder.encode(frames.to(coder.device, coder.dtype)).to_tuple()
        found = found if isinstance(found, Tensor) else found.mode()
        if found.shape != self.decoded:
            raise ValueError(
                f"its {self.coder} codes a picture as {tuple(found.shape)}, and decodes "
                f"{self.decoded}"
            )
        return found


def shown(output: Any) -> Tensor:
    """The picture, or a film's frames [n, 3, H, W] in 0..1, of a call for one as arrays.

    Raises ValueError where it is no picture.
    """
    arrays = torch.from_numpy(np.asarray(output[0])).float()
    if arrays.ndim < 4:
        raise ValueError(
            f"what it draws is no picture but {tuple(arrays.shape)} numbers, of which another "
            "pipeline makes one"
        )
    return on_white(arrays.flatten(0, -4).movedim(-1, 1))


def one_frame(output: Any) -> Tensor:
    """The same picture [1, 3, H, W], of a film the frame in its middle."""
    frames = shown(output)
    return frames[[len(frames) // 2]]


def on_white(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, H, W], as transparent ones [n, 4, H, W] are seen."""
    if pictures.shape[1] != 4:
        return pictures
    colours, seen = pictures.split([3, 1], 1)
    return colours * seen + 1 - seen


def coding_of(listener: Listener) -> Coding:
    """How a listener's draws are coded, proved by a picture that is drawn, coded and decoded again.

    Raises ValueError with what was heard where the coded picture is not what is decoded.
    """
    ear = _Ear(listener)
    return ear.proved(ear.coding())


@dataclass
class _Heard:
    """What a decoder was given [n, ...] and what it said, one call after another."""

    given: list[Tensor] = field(default_factory=list)
    said: list[Tensor] = field(default_factory=list)


class _Ear:
    """Hears what a pipeline makes of the latents that it is made to end with."""

    def __init__(self, listener: Listener):
        self._listener, parts = listener, listener.pipeline.components.items()
        coders = (n for n, m in parts if isinstance(m, nn.Module) and hasattr(m, "decode"))
        self._coder = next(coders, "")
        self._forms: dict[str, Any] = {}
        heard, self._latents, output = self._ended()
        self._calls, self._shown = len(heard.given), shown(output)
        self._given, self._said = map(torch.cat, (heard.given, heard.said)) if self._calls else (
            self._latents, self._latents)  # fmt: skip
        if self._said.ndim == 5 and self._said.shape[1] > 4:  # frames before colours, in some
            self._said = self._said.transpose(1, 2)
        half = {t.dtype.itemsize < 4 for t in (self._latents, self._given)}
        self._digit = 16 if True in half else 1024

    def _ended(self, latents: Tensor | None = None, enough: int = 0) -> tuple[_Heard, Tensor, Any]:
        """What was decoded, the latents before, and the output, if not broken off by then."""
        coder = getattr(self._listener.pipeline, self._coder) if self._coder else None
        listening = _decoding(coder, enough) if coder else nullcontext(_Heard())
        with listening as heard:
            draw = self._listener.draw(
                PROMPT, answer=nothing, forms=self._forms, ending=latents, output_type="np"
            )
        return heard, draw.result, draw.output

    def _decoded(self, latents: Tensor) -> Tensor:
        """What is given to be decoded of these latents [n], flat, in float64."""
        heard, _, _ = self._ended(latents.view(self._latents.shape), self._calls)
        return torch.cat(heard.given).flatten().cpu().double()

    def coding(self) -> Coding:
        """The coding, of latents that are counted: each number at its place tells where it goes."""
        count = self._latents.numel()
        if self._given.numel() != count:
            raise ValueError(f"of {count} numbers that it ends with it decodes "
                             f"{self._given.numel()}")  # fmt: skip
        places, scale, shift = torch.arange(count), torch.ones(count), torch.zeros(count)
        if self._calls:
            shift = self._decoded(torch.zeros(count))
            scale = self._decoded(torch.ones(count)) - shift
            places = self._places(scale, shift)
        shapes = (tuple(one.shape) for one in (self._latents, self._given, self._said))
        return Coding(self._coder if self._calls else "", places, scale, shift, *shapes)

    def _places(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Which of the latents' numbers each is that is decoded [n], told digit by digit."""
        count, power = len(scale), 1
        places = torch.zeros(count, dtype=torch.long)
        while power < count and scale.all():
            digits = torch.arange(count) // power % self._digit
            places += power * ((self._decoded(digits.float()) - shift) / scale).round().long()
            power *= self._digit
        if not torch.equal(places.sort().values, torch.arange(count)):
            raise ValueError("what it decodes is not its last latents, each number scaled")
        return places

    def proved(self, coding: Coding) -> Coding:
        """The coding, if a draw is decoded so, and a picture of it comes back as it was coded."""
        drawn = self._latents.flatten()[coding.places.to(self._latents.device)].cpu()
        _require_near(drawn * coding.scale + coding.shift, self._given, CODED,
                      "what a draw ends with is not what it decodes")  # fmt: skip
        frames = self._said.transpose(1, 2)[0] if self._said.ndim == 5 else self._said
        frames = (frames.float().cpu() / 2 + 0.5).clamp(0, 1)[: len(self._shown)]
        _require_near(on_white(frames), self._shown, SHOWN,
                      "what it decodes to is no picture in -1 to 1")  # fmt: skip
        picture = self._shown[len(self._shown) // 2]
        coded = coding.encoded(self._listener.pipeline, picture)
        heard, result, _ = self._ended(coding.latents(self._listener.pipeline, picture))
        back = torch.cat(heard.given) if self._calls else result
        _require_near(coded, back, CODED, "a picture that was coded is decoded as another")
        return coding


def _require_near(one: Tensor, other: Tensor, limit: float, otherwise: str) -> None:
    """ValueError unless two tensors of as many numbers are as good as equal."""
    one, other = numbers_of(one), numbers_of(other)
    if one.shape != other.shape:
        raise ValueError(f"{otherwise} ({len(one)} numbers, not {len(other)})")
    off = float((one - other).norm() / other.norm().clamp_min(1e-12))
    if not off < limit:
        raise ValueError(f"{otherwise} (by {off:.1e})")


@contextmanager
def _decoding(coder: Any, enough: int) -> Iterator[_Heard]:
    """While in force, what a coder is to decode is heard; the call of number `enough` is the last.

    0 is any number.
    """
    decode, heard = coder.decode, _Heard()

    @functools.wraps(decode)
    def listening(*args: Any, **given: Any) -> Any:
        heard.given.append(next(iter((*args, *given.values()))).detach().clone())
        if len(heard.given) == enough:
            raise HeardEnoughError
        said = decode(*args, **given)
        heard.said.append(raw_of(said).detach().clone())
        return said

    with overridden(coder, "decode", listening):
        yield heard
