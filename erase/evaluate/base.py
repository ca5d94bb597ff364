"""What judges and evaluators are, and where those of each name are registered."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image
from torch import Tensor

from erase.support.config import Config
from erase.support.registry import Function, Registry


class Judge(Protocol):
    """A model that names what it sees; it runs on a device of its own and answers on the CPU."""

    name: str

    @property
    def computes(self) -> str:
        """What its embeddings depend on besides its weights: how it reads pictures."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of its weights."""

    def embed(self, pictures: Tensor) -> Tensor:
        """Embeddings [N, D] of pictures [N, 3, H, W] in 0..1."""

    def classify(self, embeddings: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """What each embedded picture [N, D] shows of the labels, which are of one kind."""

    def require(self, labels: Sequence[str]) -> None:
        """Raise ValueError for a label that it cannot tell."""


@runtime_checkable
class ReadsCaptions(Protocol):
    """What a judge has besides that reads captions."""

    def score(self, embeddings: Tensor, captions: Sequence[str]) -> Tensor:
        """How well each embedded picture [N, D] fits its caption: [N]."""


@runtime_checkable
class ReadsNames(Protocol):
    """What a judge has besides that tells which names mean much the same."""

    def nearest(self, kind: str, label: str, labels: Sequence[str]) -> list[str]:
        """The other labels, those that read most like this one first."""


@dataclass(frozen=True)
class OpenJudge:
    """Opens the judge that evaluators share when it is called; they compute on its device too."""

    open: Callable[[], Judge]
    device: str = "cpu"

    def __call__(self) -> Judge:
        """The judge; ValueError if none can be opened."""
        return self.open()


class Evaluator(Protocol):
    """Figures of some pictures, and all that they depend on besides the pictures.

    Every process asks for the figures. Only those of the first count, and only its folder is kept,
    so that an evaluator that shares nothing (`support.distributed.shared_map`) is right too.
    """

    name: str

    def protocol(self) -> dict[str, Any]:
        """What the figures mean, as JSON: models, thresholds, labels."""

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """The figures as JSON; raw findings and pictures of them may go into `folder`."""


@dataclass
class Measurement:
    """An evaluator that is told its protocol and what makes the figures.

    require: raises ValueError if there are no figures of so many pictures.
    """

    name: str
    told: Mapping[str, Any]
    measure: Callable[[Sequence[Image], Path], dict[str, Any]]
    require: Callable[[int], None] = lambda count: None

    def protocol(self) -> dict[str, Any]:
        """What it was told."""
        return dict(self.told)

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """What `measure` makes of the pictures."""
        self.require(len(pictures))
        return self.measure(pictures, folder)


@dataclass(frozen=True)
class EvaluatorKind:
    """What builds an evaluator of a config of this class, or None if the config wants none."""

    config: type[Config]
    build: Callable[[Any, OpenJudge], Evaluator | None]


JUDGES: Registry[Callable[..., Judge]] = Registry("judge", "erase.judges")
EVALUATORS: Registry[EvaluatorKind] = Registry("evaluator", "erase.evaluators")


def judge(*schemes: str) -> Callable[[Function], Function]:
    """Register what opens judges whose names begin with a scheme: `timm/...`, `local-dir:...`.

    It takes a name, classes, templates and a device, as `open_judge` does. Raises ValueError if
    another one has a scheme.
    """
    return JUDGES.adding(*schemes)


def evaluator(name: str, config: type[Config]) -> Callable[[Function], Function]:
    """Register `(config, open_judge) -> Evaluator | None` under the name that its figures have.

    The fields of `config` are flags of `erase evaluate`. Raises ValueError if another one has the
    name.
    """
    return EVALUATORS.adding(name, made=lambda function: EvaluatorKind(config, function))


def protocol_hash(protocol: Any) -> str:
    """16 hex digits that are equal for equal protocols, as JSON, and hardly for others."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def evaluators_of(config: Config, judge: OpenJudge) -> list[Evaluator]:
    """What the config asks for, in the order of its fields; `judge` opens the one they share."""
    return [
        built
        for part in reversed(type(config).__mro__)
        for kind in EVALUATORS.all().values()
        if kind.config is part and (built := kind.build(config, judge)) is not None
    ]


def measured(
    pictures: Sequence[Image], evaluators: Sequence[Evaluator], folder: Path
) -> dict[str, Any]:
    """Every evaluator's figures, its protocol and the protocol's hash."""
    figures = {}
    for evaluator in evaluators:
        protocol = evaluator.protocol()
        hashed = {"protocol": protocol, "protocol_hash": protocol_hash(protocol)}
        figures[evaluator.name] = hashed | evaluator.figures(pictures, folder)
    return figures
