"""A family that is learned from the pipeline itself: from a few short calls, and proved by them."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erase.core.process import own_settings
from erase.models.calling import PROMPT, Calling, asked_by, calling_of, nothing
from erase.models.levels import Levels
from erase.models.listening import Call, Draw, Listener, leaves, raw_of, same
from erase.models.stock import stock_class
from erase.models.text_layers import TextLayers, shortened

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


@dataclass(frozen=True)
class LearnedFamily:
    """What a pipeline's own calls tell of it.

    call: which call of a step is the prompt's. rows: how many rows it has, and which is the
    prompt's. text: the layers that hear text alone. timed: those that hear text and time, but no
    picture. enters: by place, the weights that read text there and together carry all of it.
    predicts: what the denoiser gives. pairs: of the time it is told, and the noise there. error:
    how far draws that were answered for by these pairs strayed, of what is allowed.
    """

    pipeline: str
    calling: Calling
    denoisers: Sequence[Denoiser]
    call: int
    rows: tuple[int, int]
    text: Sequence[str]
    timed: Sequence[str]
    enters: Mapping[str, Sequence[str]]
    predicts: str
    pairs: Sequence[tuple[float, float]]
    error: float
    seconds: float

    @property
    def names(self) -> list[str]:
        """The denoisers that hear the prompt."""
        return [one.name for one in self.denoisers]

    def levels(self, listener: Listener) -> Levels:
        """What finds the levels of noise in a listener's draws."""
        return _levels_of(listener, self.denoisers, self.call)

    def as_json(self) -> dict[str, Any]:
        """All of it but the seconds, which differ each time, for a file."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}

    def __str__(self) -> str:
        lines = [f"{self.pipeline}, learned from its own calls in {self.seconds:.1f} s"]
        for one in self.denoisers:
            lines.append(f"  {one.name}: a {one.kind}")
            lines += [f"    {role}: {_listed(one, role)}" for role in ("latents", "time", "text")]
        pairs = ", ".join(f"{told:.4g} ({noise:.3f})" for told, noise in self.pairs)
        edited = [name for names in self.enters.values() for name in names]
        return "\n".join([
            *lines,
            f"  predicts: {self.predicts}",
            f"  times (and the noise there): {pairs}",
            f"  layers that hear text alone: {shortened(self.text)}",
            f"  layers that hear text and time: {shortened(self.timed)}",
            f"  weights through which all text enters: {shortened(edited)}",
            "  proved: a call made again answers the same; another prompt's text in these layers "
            "draws its picture, bit for bit",
        ])  # fmt: skip


def _listed(one: Denoiser, role: str) -> str:
    names = one.given(role)
    axes = [one.axes.get(name) for name in names]
    told = ("" if axis is None else f" (prompts along axis {axis})" for axis in axes)
    return ", ".join(f"{name}{axis}" for name, axis in zip(names, told, strict=True))


def training_risk(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    """What training weights risks, in a sentence, if pictures pass by them too; else empty.

    facts: what an erasure's recipe notes of a family; nothing is known of those not learned.
    """
    if not (known := facts.get("learned")):
        return ""
    ours = tuple(f"{layer}." for layer in (*known["text"], *known["timed"]))
    if not (shared := [name for name in names if not name.startswith(ours)]):
        return ""
    some = shortened(shared[:4]) + (", ..." if len(shared) > 4 else "")
    return (
        f"{len(shared)} of the {len(names)} tensors that train hear pictures too: {some}. Where "
        "text and picture share weights, as in single-stream models, training can collapse all "
        f"that a {known['pipeline']} draws, what is retained too; leave --task.include to what "
        "hears text alone, or train under SalUn's mask with the retain loss, and look at the "
        "pictures."
    )


_known: dict[str, LearnedFamily] = {}


def learned(pipeline: DiffusionPipeline) -> LearnedFamily:
    """What is learned of the pipeline, once in a process for a class and configuration.

    Raises ValueError with what was heard where it can't be proved.
    """
    key = _key(pipeline)
    if key not in _known:
        _known[key] = learn(pipeline)
    return _known[key]


def _key(pipeline: DiffusionPipeline) -> str:
    parts = {name: _facts(part) for name, part in sorted(pipeline.components.items())}
    own = {name: one for name, one in pipeline.config.items() if name not in parts}
    asked = json.dumps([stock_class(pipeline).__name__, own, parts], default=str)
    return sha256(asked.encode()).hexdigest()


def _facts(part: Any) -> list[Any]:
    """What tells a component's class and configuration from others."""
    config = getattr(part, "config", None) or {}
    config = config if isinstance(config, Mapping) else vars(config)
    shown = {str(name): value for name, value in config.items() if str(name)[0] != "_"}
    return [type(part).__name__, str(getattr(part, "dtype", "")), shown]


@own_settings()
@torch.no_grad()
def learn(pipeline: DiffusionPipeline) -> LearnedFamily:
    """Listen to a few short calls of the pipeline, and prove what they tell by others.

    Raises ValueError where replay or exchange are not equal bit for bit, or no known kind of
    prediction leads to the picture that is meant.
    """
    kind, begun = stock_class(pipeline).__name__, time.perf_counter()
    try:
        if "prompt" not in asked_by(pipeline) or not hasattr(pipeline, "scheduler"):
            raise ValueError("it takes no prompt, or has no scheduler")
        try:
            return _learned_of(pipeline, calling_of(pipeline), begun)
        except _UnheardError:  # what stands before the prompt may leave no room for it
            return _learned_of(pipeline, calling_of(pipeline, None), begun)
    except ValueError as error:
        raise ValueError(
            f"The pipeline is a {kind}, of no known family, and none could be learned of it: "
            f"{str(error).rstrip('.')}."
        ) from error


class _UnheardError(ValueError):
    """Prompts make no difference."""


def _learned_of(pipeline: DiffusionPipeline, calling: Calling, begun: float) -> LearnedFamily:
    listener = calling.listener(pipeline)
    arguments = _Arguments(listener)
    denoisers = arguments.denoisers()
    text = TextLayers(listener, [one.name for one in denoisers], (PROMPT, OTHER), arguments.call)
    _require_replayed(pipeline, text.drawn, denoisers)
    enters = text.entries()
    ladder = _levels_of(listener, denoisers, arguments.call).found()
    pairs = [(_number(level.told), level.noise) for level in ladder.levels]
    return LearnedFamily(
        stock_class(pipeline).__name__, calling, denoisers,
        arguments.call, arguments.rows(denoisers[0]), text.heard(timed=False),
        text.heard(timed=True), enters, ladder.kind, pairs, ladder.error,
        time.perf_counter() - begun,
    )  # fmt: skip


def _levels_of(listener: Listener, denoisers: Sequence[Denoiser], call: int) -> Levels:
    first, names = denoisers[0], [one.name for one in denoisers]
    latents, told = first.given("latents")[0], first.given("time")
    return Levels(listener, names, latents, told, call, PROMPT)


def _require_replayed(
    pipeline: DiffusionPipeline, draw: Draw, denoisers: Sequence[Denoiser]
) -> None:
    for name in (one.name for one in denoisers):
        calls = draw.of(name)
        for call in (calls[0], calls[-1]):
            if not same(raw_of(getattr(pipeline, name)(**call.arguments)), call.raw):
                raise ValueError(f"a call of {name} made again gives another answer")


class _Arguments:
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
            raise _UnheardError("no module that is called at every step hears the prompt")
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


def _number(told: Mapping[str, Any]) -> float:
    """The first time that is told, as a number."""
    return next((float(torch.as_tensor(one).flatten()[0]) for one in told.values()), 0.0)
