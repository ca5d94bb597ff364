"""A family that is learned from the pipeline itself: from a few short calls, and proved by them."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from erase.core.process import own_settings
from erase.models.arguments import OTHER, Arguments, Denoiser, UnheardError
from erase.models.calling import PROMPT, Calling, asked_by, calling_of
from erase.models.cuts import number_of
from erase.models.levels import Levels
from erase.models.listening import Draw, Listener, raw_of, same
from erase.models.stock import stock_class
from erase.models.text_encoders import heard_encoders, speaks_clip
from erase.models.text_layers import TextLayers, starred


@dataclass(frozen=True)
class LearnedFamily:
    """What a pipeline's own calls tell of it.

    call: which call of a step is the prompt's. rows: how many rows it has, and which is the
    prompt's. text: the layers that hear text alone. timed: those that hear text and time, but no
    picture. enters: by place, the weights that read text there and together carry all of it.
    encoders: the text encoders that gradients reach, which may change where they are named. words:
    those of CLIP's among them. predicts: what the denoiser gives. pairs: of the time it is told,
    and the noise there. error: how far draws that were answered for by these pairs strayed, of what
    is allowed.
    """

    pipeline: str
    calling: Calling
    denoisers: Sequence[Denoiser]
    call: int
    rows: tuple[int, int]
    text: Sequence[str]
    timed: Sequence[str]
    enters: Mapping[str, Sequence[str]]
    encoders: Sequence[str]
    words: Sequence[str]
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
        return Levels(listener, self.denoisers, self.call)

    def as_json(self) -> dict[str, Any]:
        """All of it but the seconds, which differ each time, for a file."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}

    def __str__(self) -> str:
        lines = [f"{self.pipeline}, learned from its own calls in {self.seconds:.1f} s"]
        for one in self.denoisers:
            lines.append(f"  {one.name}: a {one.kind}")
            lines += [f"    {role}: {_listed(one, role)}" for role in ("latents", "time", "text")]
        pairs = ", ".join(f"{told:.4g} ({noise:.3f})" for told, noise in self.pairs)
        encoders, words = (", ".join(names) or "none" for names in (self.encoders, self.words))
        edited = [name for names in self.enters.values() for name in names]
        return "\n".join([
            *lines,
            f"  text encoders that may change where they are named: {encoders}",
            f"  text encoders in which words can be searched: {words}",
            f"  predicts: {self.predicts}",
            f"  times (and the noise there): {pairs}",
            f"  layers that hear text alone: {starred(self.text)}",
            f"  layers that hear text and time: {starred(self.timed)}",
            f"  weights through which all text enters: {starred(edited)}",
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
    some = starred(shared[:4]) + (", ..." if len(shared) > 4 else "")
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
        _require_one_way(pipeline)
        try:
            return _learned_of(pipeline, calling_of(pipeline), begun)
        except UnheardError:  # what stands before the prompt may leave no room for it
            return _learned_of(pipeline, calling_of(pipeline, None), begun)
    except ValueError as error:
        raise ValueError(
            f"The pipeline is a {kind}, of no known family, and none could be learned of it: "
            f"{str(error).rstrip('.')}."
        ) from error


def _require_one_way(pipeline: DiffusionPipeline) -> None:
    """ValueError for what takes no prompt, or draws by no scheduler of its own."""
    parts = pipeline.components.items()
    schedulers = [name for name, part in parts if isinstance(part, SchedulerMixin)]
    if "prompt" not in asked_by(pipeline):
        raise ValueError("it takes no prompt")
    if hasattr(pipeline, "scheduler"):
        return
    if schedulers:
        raise ValueError(
            f"it draws in stages, one after another ({', '.join(schedulers)}), and what one hands "
            "to the next is not followed; open the one that reads the prompt, where it has a class "
            "of its own"
        )
    raise ValueError("it has no scheduler")


def _learned_of(pipeline: DiffusionPipeline, calling: Calling, begun: float) -> LearnedFamily:
    listener = calling.listener(pipeline)
    arguments = Arguments(listener)
    denoisers = arguments.denoisers()
    names = [one.name for one in denoisers]
    text = TextLayers(listener, names, (PROMPT, OTHER), arguments.call)
    _require_replayed(pipeline, text.drawn, names)
    enters, encoders = text.entries(), heard_encoders(listener, names)
    words = [name for name in encoders if speaks_clip(pipeline, name)]
    ladder = Levels(listener, denoisers, arguments.call).found()
    pairs = [
        (next(map(number_of, level.told.values()), 0.0), level.noise) for level in ladder.levels
    ]
    return LearnedFamily(
        stock_class(pipeline).__name__, calling, denoisers,
        arguments.call, arguments.rows(denoisers[0]), text.heard(timed=False),
        text.heard(timed=True), enters, encoders, words, ladder.kind, pairs, ladder.error,
        time.perf_counter() - begun,
    )  # fmt: skip


def _require_replayed(pipeline: DiffusionPipeline, draw: Draw, denoisers: Sequence[str]) -> None:
    for name in denoisers:
        calls = draw.of(name)
        for call in (calls[0], calls[-1]):
            if not same(raw_of(getattr(pipeline, name)(**call.arguments)), call.raw):
                raise ValueError(f"a call of {name} made again gives another answer")
