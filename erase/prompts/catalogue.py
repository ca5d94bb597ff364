"""The concepts a model is known to draw, as `concepts.json` beside its weights lists them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, sqrt
from pathlib import Path
from string import Formatter
from typing import Any, Literal

Kind = Literal["object", "style"]
FILE = "concepts.json"
LARGEST = 1 << 24  # bytes of such a file
TEMPLATES = ("templates", "object_templates")
FILLED = {"object", "style", "a", "a_style"}


@dataclass(frozen=True)
class Concept:
    """A name with its kind; a style's prompts say `NAME style`."""

    name: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name} style" if self.kind == "style" else self.name


@dataclass(frozen=True)
class Sampling:
    """How a model is meant to be sampled; size: pixels of a side, 0 for the pipeline's own."""

    steps: int = 50
    guidance_scale: float = 7.5
    size: int = 0


@dataclass(frozen=True)
class Finetuning:
    """How a model is meant to be finetuned; by default as the field does Stable Diffusion.

    learning_rate, steps: AdamW's. anchored_rate, anchored_steps: the same where the base's own
    predictions on the retain set hold the model in place, which then weigh `retain_weight` times as
    much as what is taught.
    """

    learning_rate: float = 1e-5
    steps: int = 100
    anchored_rate: float = 1e-5
    anchored_steps: int = 100
    retain_weight: float = 5.0

    def of_list(self, count: int) -> "Finetuning":
        """The same of so many concepts: steps grow as the root of their number."""
        steps, anchored = (ceil(n * sqrt(count)) for n in (self.steps, self.anchored_steps))
        return replace(self, steps=steps, anchored_steps=anchored)


@dataclass(frozen=True)
class Catalogue:
    """Objects and styles a model draws, prompt templates, and synonyms of objects.

    `templates` hold `{object}`, `{style}` and the articles `{a}` and `{a_style}` that fit them;
    `object_templates` name no style. `anchors` says what to draw instead of a forgotten concept,
    such as "outline style" for "blob style", where the request does not. `finetuning` is by kind of
    concept.
    """

    objects: Sequence[str]
    styles: Sequence[str]
    templates: Sequence[str]
    object_templates: Sequence[str] = ()
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    finetuning: dict[str, Finetuning] = field(default_factory=dict)
    anchors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_model(cls, folder: str | Path) -> "Catalogue | None":
        """Read `concepts.json` of a model folder, if it has one; ValueError if it is none."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it is larger than {LARGEST >> 20} MB")
            record = json.loads(path.read_text(encoding="utf-8"))
            _require_texts(record)
            record["sampling"] = Sampling(**record["sampling"])
            by_kind = record.get("finetuning", {})
            record["finetuning"] = {kind: Finetuning(**how) for kind, how in by_kind.items()}
            return cls(**record)
        except Exception as error:  # a file of others may break anything
            raise ValueError(
                f"{path} is not a list of concepts ({str(error)[:100]!r}); mend it, or remove it "
                "and name --retain."
            ) from error

    def concepts(self, kind: Kind) -> list[Concept]:
        """All concepts of one kind."""
        names = self.objects if kind == "object" else self.styles
        return [Concept(name, kind) for name in names]

    def prompt(self, object_: str, style: str) -> str:
        """The first template filled in."""
        return fill(self.templates[0], object_, style)


def _require_texts(record: Mapping[str, Any]) -> None:
    """ValueError unless names are texts, templates hold what is filled in, and numbers are some."""
    lists = [record.get(part, []) for part in ("objects", "styles", *TEMPLATES)]
    lists += [*record.get("synonyms", {}).values(), list(record.get("anchors", {}).values())]
    if not all(isinstance(texts, list) for texts in lists):
        raise ValueError("a list of names is none")
    if strange := [text for texts in lists for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{strange[0]!r:.40} is no text")
    for text in (text for part in TEMPLATES for text in record.get(part, ())):
        for _, name, width, kind in Formatter().parse(text):
            if width or kind or name not in (FILLED | {None}):
                raise ValueError(f"the template {text!r:.60} holds others than {sorted(FILLED)}")
    for how in (record["sampling"], *record.get("finetuning", {}).values()):
        for name, number in how.items():
            if type(number) not in (int, float) or not 0 <= number < 1e6:
                raise ValueError(f"{name:.20} is {number!r:.40}")


def fill(template: str, object_: str, style: str = "") -> str:
    """A template with its object, style and their articles."""
    return template.format(object=object_, style=style, a=article(object_), a_style=article(style))


def article(noun: str) -> str:
    """`a` or `an`, by the first letter."""
    return "an" if noun[:1] in tuple("aeiou") else "a"
