"""What a pipeline's denoisers are given, argument by argument, heard in a few draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from erase.models.calling import PROMPT, nothing
from erase.models.listening import Call, Draw, Listener, leaves, same

OTHER, LONGER = "a pizza", "a photo of a ghost in the garden"


@dataclass(frozen=True)
class Denoiser:
    """What one denoiser that hears the prompt is given, by argument.

    roles: latents, time, text (and what follows its length), or the same in all calls. axes: which
    axis is the prompts', none where there is none. states: along which axis the words lie of the
    text that is words' states, one by one.
    """

    name: str
    kind: str
    roles: Mapping[str, str]
    axes: Mapping[str, int | None]
    states: Mapping[str, int]

    def given(self, role: str) -> list[str]:
        """Its arguments of a role."""
        return [name for name, one in self.roles.items() if one == role]


class UnheardError(ValueError):
    """Prompts make no difference."""


class Arguments:
    """What the denoisers are given, heard in draws in which nothing is predicted.

    So prompts change no latents. call: which call of a step hears the prompt.
    """

    def __init__(self, listener: Listener):
        self._listener, self.call = listener, 0
        self._one, self._noise = self._draw(PROMPT), self._draw(PROMPT, 7)
        self._other, self._longer = self._draw(OTHER), self._draw(LONGER)
        try:
            self._twice = self._draw([PROMPT, PROMPT])
        except Exception:  # a class that takes but one prompt says so in its own way
            self._twice = Draw()

    def _draw(self, prompt: str | list[str], seed: int = 0) -> Draw:
        return self._listener.draw(prompt, seed, answer=nothing)

    def denoisers(self) -> list[Denoiser]:
        """Those that hear the prompt; ValueError if there are none."""
        found = [one for name in self._listener.modules if (one := self._denoiser(name))]
        if not found:
            raise UnheardError("no module that is called at every step hears the prompt")
        return found

    def _denoiser(self, name: str) -> Denoiser | None:
        calls = (draw.of(name) for draw in (self._one, self._noise, self._other, self._longer))
        one, noise, other, longer = calls
        pairs = zip(one, other, strict=False)
        unlike = [i for i, (a, b) in enumerate(pairs) if _unlike(a, b)]
        if not unlike:
            return None
        first = unlike[0]
        here = one[first]
        self.call = sum(call.step == here.step for call in one[:first])
        a_step = sum(call.step == here.step for call in one)
        times = set[str]().union(*(_unlike(here, call) for call in one[first + a_step :: a_step]))
        noisy = _unlike(here, noise[first])
        texts = _unlike(here, other[first]) | _unlike(here, longer[first])
        if len(noisy) != 1 or noisy & texts:
            raise ValueError(
                f"the noise reaches {name} as {', '.join(sorted(noisy)) or 'nothing'}, not as one "
                "argument that the prompt does not change"
            )
        roles = {
            leaf: "latents" if leaf in noisy else "text" if leaf in texts
            else "time" if leaf in times else "same"
            for leaf in leaves(here.arguments)
        }  # fmt: skip
        kind, ours = type(getattr(self._listener.pipeline, name)).__name__, leaves(here.arguments)
        axes, theirs = self._axes(name, ours), leaves(other[first].arguments)
        tokens = {leaf: _tokens(ours[leaf], theirs.get(leaf), axes.get(leaf)) for leaf in texts}
        states = {leaf: axis for leaf, axis in sorted(tokens.items()) if axis is not None}
        return Denoiser(name, kind, roles, axes, states)

    def _axes(self, name: str, one: Mapping[str, Any]) -> dict[str, int | None]:
        """Along which axis of each argument two prompts lie."""
        calls = self._twice.of(name)
        two = leaves(calls[0].arguments) if calls else {}
        pairs = {leaf: (tensor, two.get(leaf)) for leaf, tensor in one.items()}
        return {
            leaf: next((i for i in range(a.ndim) if b.shape[i] == 2 * a.shape[i]), None)
            for leaf, (a, b) in pairs.items()
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim
        }

    def rows(self, one: Denoiser) -> tuple[int, int]:
        """How many rows the text of a call has, and which is the prompt's."""
        ours, others = (
            leaves(draw.of(one.name)[self.call].arguments) for draw in (self._one, self._other)
        )
        for leaf in (leaf for leaf in one.given("text") if one.axes.get(leaf, 0) == 0):
            a, b = ours[leaf], others.get(leaf)
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim and a.shape == b.shape:
                unlike = [i for i in range(len(a)) if not same(a[i], b[i])]
                if len(unlike) == 1:
                    return len(a), unlike[0]
        return 1, 0


def _unlike(one: Call, other: Call) -> set[str]:
    """The arguments of one call that are not alike in another, or not there."""
    ours, theirs = leaves(one.arguments), leaves(other.arguments)
    return {name for name, leaf in ours.items() if not same(leaf, theirs.get(name))}


def _tokens(one: Any, other: Any, prompts: int | None) -> int | None:
    """Along which axis the words' states lie of what two prompts of one length are read as.

    It is the longest but the last and that of prompts. None of what is no states: masks, numbers of
    tokens, and what has but one row a prompt.
    """
    numbers = isinstance(one, Tensor) and one.is_floating_point() and len(one.unique()) > 2
    if not numbers or not isinstance(other, Tensor) or one.shape != other.shape or same(one, other):
        return None
    axes = [axis for axis in range(one.ndim - 1) if axis != prompts and one.shape[axis] > 1]
    return max(axes, key=lambda axis: one.shape[axis]) if axes else None
