"""What an erasure says of itself: the recipe, which is kept as it was written, read as types."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from erase.core.fingerprint import fingerprint
from erase.prompts.names import alike
from erase.prompts.request import EraseRequest
from erase.support.config import Config, NotNegative, OwnFiles, Positive, require_kind

logger = logging.getLogger(__name__)
NAMES = ("concepts", "anchors", "retain", "templates")  # of a request
COARSE_FIRST = ("bfloat16", "float16")
Part = TypeVar("Part", bound=Config)


@dataclass(frozen=True)
class Base(OwnFiles):
    """The model an erasure was made for; its name and family are empty where nobody noted them.

    fingerprints: of the tensors that change, by name, of their values in float16. bfloat16: the
    same of their values in that. dtype: what they were stored in. loads_lora: whether the family's
    stock pipeline loads LoRA files.
    """

    model: str = ""
    family: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    loads_lora: bool = True
    bfloat16: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float32"

    def is_of(self, name: str, weight: Tensor) -> bool:
        """Whether a weight [...] has the base's values, as far as the coarser of both dtypes tells.

        So it is where nobody has taken its fingerprint.
        """
        if name not in self.fingerprints:
            return True
        if "bfloat16" in (self.dtype, _name_of(weight.dtype)):
            return self.bfloat16.get(name) == fingerprint(weight, torch.bfloat16)
        return self.fingerprints[name] == fingerprint(weight)

    def agrees(self, name: str, other: "Base") -> bool:
        """As `is_of`, of the weight of that name in another base."""
        coarse = "bfloat16" in (self.dtype, other.dtype)
        one, two = (base.bfloat16 if coarse else base.fingerprints for base in (self, other))
        noted = name in self.fingerprints and name in other.fingerprints
        return not noted or one.get(name) == two.get(name)


@dataclass(frozen=True)
class Truncation(Config):
    """To which rank an erasure was cut, what that lost of it, and which tensors it left out."""

    rank: int = 0
    relative_error: float = 0.0
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class MaskedLayer(Config):
    """How many of a tensor's weights may change, and its share of the saliency."""

    of: Positive[int] = 1
    kept: NotNegative[int] = 0
    saliency_share: float | None = None


@dataclass(frozen=True)
class Recipe(Config):
    """How an erasure was made, as far as the library reads it; what is not noted is empty.

    run: what tells the run from others. task: its sets and, as `config`, how they were drawn. mask:
    counts, in all and by layer. report: the figures, and as `table` what a person reads of them.
    """

    base: Base = field(default_factory=Base)
    request: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    run: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    mask: Mapping[str, Any] = field(default_factory=dict)
    truncation: Truncation | None = None
    report: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Recipe":
        """The parts of a recipe; ValueError naming one that is of another type.

        What older versions did not write is empty; what newer ones add is not looked at.
        """
        require_kind("recipe", record, Mapping[str, Any])
        parts: dict[str, type[Config]] = {"base": Base, "truncation": Truncation}
        typed = {n: _known(kind, n, record[n]) for n, kind in parts.items() if n in record}
        recipe = _known(cls, "recipe", {**record, **typed})
        for name in NAMES:
            require_kind(name, recipe.request.get(name, ()), Sequence[str])
        require_kind("layers", recipe.layers, Mapping[str, Any])
        require_kind("config", recipe.drawn, Mapping[str, Any])
        require_kind("redirected", recipe.task.get("redirected", {}), Mapping[str, str])
        require_kind("keep", recipe.drawn.get("keep", ()), Sequence[str])
        for name, layer in recipe.layers.items():
            _known(MaskedLayer, name, layer)
            if not {"of", "kept"} <= layer.keys():
                raise ValueError(f"{name} has no counts of its mask")
        require_kind("table", (recipe.report or {}).get("table", ""), str)
        require_kind("protocol", (recipe.report or {}).get("protocol", {}), Mapping[str, Any])
        return recipe

    @property
    def concepts(self) -> Sequence[str]:
        """What it forgets."""
        return self.request.get("concepts", ())

    @property
    def drawn(self) -> Mapping[str, Any]:
        """How the sets that it was made with were drawn."""
        return self.task.get("config", {})

    @property
    def size(self) -> int:
        """Pixels of a side at which it was made; 0 for the model's own."""
        return self.drawn.get("size", 0)

    @property
    def layers(self) -> Mapping[str, Any]:
        """The mask's counts and share of the saliency by layer, if there was a mask."""
        return self.mask.get("layers", {})

    def asked(self) -> EraseRequest:
        """The request as it was made; ValueError if there is none."""
        if not self.concepts:
            raise ValueError("The erasure does not say what it forgets; give one of `erase run`.")
        known = {part.name for part in fields(EraseRequest)}
        if strange := sorted(self.request.keys() - known):
            logger.warning("The request's %s is of a newer version; left out.", ", ".join(strange))
        asked: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.request.items()
            if name in known
        }
        return EraseRequest(**asked)


def joint_request(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What requests ask together: one alone as it is, of several all concepts and templates.

    Anchors are theirs if each concept has one that is not forgotten itself. If all name what they
    retain, it is what any does but for the concepts.
    """
    if len(requests) == 1:
        return dict(requests[0])
    joint: dict[str, Any] = {
        name: list({alike(one): one for asked in requests for one in asked.get(name, ())}.values())
        for name in NAMES
    }
    forgotten = [alike(concept) for concept in joint["concepts"]]
    instead = {
        alike(concept): anchor
        for asked in requests
        for concept, anchor in zip(*(asked.get(name, ()) for name in NAMES[:2]), strict=False)
    }
    apart = not {*forgotten} & {*map(alike, joint["anchors"])} and {*forgotten} == instead.keys()
    joint["anchors"] = [instead[concept] for concept in forgotten] if apart else []
    chosen = joint["retain"] if all(asked.get("retain") for asked in requests) else ()
    joint["retain"] = [name for name in chosen if alike(name) not in forgotten]
    lots = {asked.get("redirect") for asked in requests} == {"random"}
    joint["redirect"] = "random" if lots else ""
    return {name: said for name, said in joint.items() if said}


def _known(kind: type[Part], name: str, record: Any) -> Part:
    """The fields that a type knows of a record."""
    require_kind(name, record, Mapping[str, Any])
    known = {part.name for part in fields(kind)}
    return kind(**{key: value for key, value in record.items() if key in known})


def base_facts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is noted of a base by which its weights [...] are known, in any precision."""
    return {
        "fingerprints": {name: fingerprint(weight) for name, weight in weights.items()},
        "bfloat16": {name: fingerprint(w, torch.bfloat16) for name, w in weights.items()},
        "dtype": coarsest({_name_of(weight.dtype) for weight in weights.values()}),
    }


def coarsest(dtypes: Collection[str]) -> str:
    """Of dtypes' names the one that tells the fewest numbers apart; float32 of any wider."""
    return next((name for name in COARSE_FIRST if name in dtypes), "float32")


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def for_any_base(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the fingerprints of its base."""
    return {**recipe, "base": {**recipe.get("base", {}), "fingerprints": {}}}
