"""What to forget: concepts and their anchors, expanded to the prompts that methods train on."""

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from erase.catalogue import Catalogue, Concept

PLAIN_TEMPLATES = ("{concept}", "a picture of {concept}", "a photo of {concept}")


@dataclass(frozen=True)
class EraseRequest:
    """Concepts to forget, what to draw instead, and what must stay.

    concepts: names such as "ghost" or "ink style". anchors: what each is redirected to, one per
    concept; by default the next concept of its kind. retain: what must stay; by default every
    other concept the model's catalogue lists, and required of models without one. templates:
    prompts with `{concept}`, for models without a catalogue.
    """

    concepts: Sequence[str]
    anchors: Sequence[str] = ()
    retain: Sequence[str] = ()
    templates: Sequence[str] = PLAIN_TEMPLATES
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.concepts or not all(name.strip() for name in self.concepts):
            raise ValueError("The concept is empty; name what to forget, e.g. --concept ghost.")
        if self.anchors and len(self.anchors) != len(self.concepts):
            raise ValueError(
                f"{len(self.anchors)} anchors for {len(self.concepts)} concepts; give one each."
            )
        for concept, anchor in zip(self.concepts, self.anchors, strict=False):
            if concept == anchor:
                raise ValueError(f"The anchor of {concept} is itself; name something else.")


@dataclass(frozen=True)
class Prompt:
    """A prompt, the kind of concept it tests, and what a judge should see, by kind."""

    text: str
    kind: str
    labels: Mapping[str, str]
    anchor: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that name a forgotten concept, prompts that name none, and the judge's labels."""

    forget: list[Prompt]
    retain: list[Prompt]
    labels: dict[str, list[str]] = field(default_factory=dict)


def expand(request: EraseRequest, catalogue: Catalogue | None) -> PromptSet:
    """All prompts of a request, in an order that depends on nothing but the request."""
    if catalogue is None:
        return _expand_plain(request)
    return _expand_catalogue(request, catalogue)


def _expand_plain(request: EraseRequest) -> PromptSet:
    if not request.retain:
        raise ValueError("The retain set is empty; name concepts to keep, e.g. --retain dog car.")
    anchors = request.anchors or [""] * len(request.concepts)
    forget = [
        Prompt(t.format(concept=c), "concept", {"concept": c}, t.format(concept=a).strip())
        for c, a in zip(request.concepts, anchors, strict=True)
        for t in request.templates
    ]
    retain = [
        Prompt(t.format(concept=c), "concept", {"concept": c})
        for c in request.retain
        for t in request.templates
    ]
    return PromptSet(forget, retain, {"concept": [*request.concepts, *request.retain]})


def _expand_catalogue(request: EraseRequest, catalogue: Catalogue) -> PromptSet:
    forgotten = [find_concept(name, catalogue) for name in request.concepts]
    kept_names = [find_concept(name, catalogue) for name in request.retain]
    anchors = [find_concept(name, catalogue) for name in request.anchors]
    anchors = anchors or [_next_concept(concept, forgotten, catalogue) for concept in forgotten]
    swap = dict(zip(forgotten, anchors, strict=True))
    for concept, anchor in swap.items():
        if anchor in swap:
            raise ValueError(f"The anchor {anchor} of {concept} is forgotten too; name another.")
    forget, retain = [], []
    for object_ in catalogue.concepts("object"):
        for style in catalogue.concepts("style"):
            gone = [concept for concept in (object_, style) if concept in swap]
            if gone:
                forget += _forget_prompts(object_, style, gone[0], swap, catalogue)
            elif not kept_names or object_ in kept_names or style in kept_names:
                retain += _retain_prompts(object_, style, forgotten[0], catalogue)
    if not retain:
        raise ValueError("The retain set is empty; leave some concept to keep.")
    labels = {"object": list(catalogue.objects), "style": list(catalogue.styles)}
    return PromptSet(forget, retain, labels)


def _forget_prompts(
    object_: Concept, style: Concept, gone: Concept, swap: dict[Concept, Concept], known: Catalogue
) -> list[Prompt]:
    instead_object, instead_style = swap.get(object_, object_), swap.get(style, style)
    labels = {"object": object_.name, "style": style.name}
    names = [object_.name, *(known.synonyms.get(object_.name, []) if gone == object_ else [])]
    return [
        Prompt(
            known.prompt(name, style.name, template),
            gone.kind,
            labels,
            known.prompt(instead_object.name, instead_style.name, template),
        )
        for name in names
        for template in range(len(known.templates))
    ]


def _retain_prompts(
    object_: Concept, style: Concept, forgotten: Concept, known: Catalogue
) -> list[Prompt]:
    labels = {"object": object_.name, "style": style.name}
    return [
        Prompt(known.prompt(object_.name, style.name, template), forgotten.kind, labels)
        for template in range(len(known.templates))
    ]


def find_concept(name: str, catalogue: Catalogue) -> Concept:
    """The catalogue's concept called `name`, `NAME style` or by a synonym; ValueError if none."""
    wanted = name.strip().lower()
    known = catalogue.concepts("object") + catalogue.concepts("style")
    by_name = {str(concept): concept for concept in known}
    by_name |= {concept.name: concept for concept in reversed(known)}
    by_synonym = {s: by_name[o] for o, words in catalogue.synonyms.items() for s in words}
    for names in (by_name, by_synonym):
        if wanted in names:
            return names[wanted]
    near = difflib.get_close_matches(wanted, [*by_name, *by_synonym], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see the model's concepts.json."
    raise ValueError(f"The model does not know the concept {name!r}; {hint}")


def _next_concept(concept: Concept, forgotten: list[Concept], catalogue: Catalogue) -> Concept:
    peers = catalogue.concepts(concept.kind)
    start = peers.index(concept)
    ring = peers[start + 1 :] + peers[:start]
    anchor = next((peer for peer in ring if peer not in forgotten), None)
    if anchor is None:
        raise ValueError(f"Nothing is left to draw instead of {concept}; keep some {concept.kind}.")
    return anchor


def sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts drawn as evenly as possible: whole shuffled rounds, then part of one."""
    rng = random.Random(seed)
    drawn: list[Prompt] = []
    while len(drawn) < count:
        drawn += rng.sample(prompts, len(prompts))
    return drawn[:count]
