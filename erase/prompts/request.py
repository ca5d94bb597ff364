"""What to forget: concepts and their anchors, expanded to the prompts that methods train on."""

import difflib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from erase.prompts.catalogue import Catalogue, Concept, fill
from erase.prompts.names import SIGN, alike, listed, listed_pairs, spelt

PLAIN_TEMPLATES = ("{concept}", "a picture of {concept}", "a photo of {concept}")
PLAIN_KIND = "concept"
NO_STYLE = Concept("", "style")
Redirect = Literal["anchor", "random"]


@dataclass(frozen=True)
class EraseRequest:
    """Concepts to forget, what to draw instead, and what must stay.

    Args:
        concepts: names such as "ghost" or "ink style".
        anchors: what each is redirected to, one per concept; by default what the catalogue says, or
            else the concept of its kind half-way round its list, where neighbours tend to look
            alike.
        redirect: "random" takes another concept for each prompt. As random labels do.
        retain: what must stay; by default every other concept the model's catalogue lists, and
            required of models without one.
        templates: prompts with `{concept}`, for models without a catalogue.
        seed: of all that is drawn at random.
    """

    concepts: Sequence[str]
    anchors: Sequence[str] = ()
    redirect: Redirect = "anchor"
    retain: Sequence[str] = ()
    templates: Sequence[str] = PLAIN_TEMPLATES
    seed: int = 0

    @classmethod
    def from_lists(
        cls,
        concepts: Sequence[str],
        anchors: Sequence[str] = (),
        retain: Sequence[str] = (),
        **others: Any,
    ) -> "EraseRequest":
        """The request in which every `@FILE` stands for the names in a file, one a line.

        A CSV file of concepts may name their anchors in a second column. Raises ValueError too for
        what `erase.prompts.names` refuses of a file, and for anchors in it and beside it.
        """
        names, beside = listed_pairs(concepts)
        if beside and anchors:
            raise ValueError("The list of concepts names anchors too; leave out the others.")
        return cls(names, beside or listed(anchors), retain=listed(retain), **others)

    def __post_init__(self) -> None:
        for name in ("concepts", "anchors", "retain", "templates"):
            if isinstance(texts := getattr(self, name), str) or not isinstance(texts, Sequence):
                what = "one text" if isinstance(texts, str) else f"{texts!r:.80}"
                raise ValueError(f"{name} is {what}; give a list of names.")
            if strange := [part for part in texts if not isinstance(part, str)]:
                raise ValueError(f"{name} holds {strange[0]!r}; give texts.")
            # Requests come from strangers too, with erasures; none may have a file read.
            if files := [part for part in texts if part.startswith(SIGN)]:
                raise ValueError(f"{files[0]:.80} would be a list of names in a file, which only "
                                 "the command line and EraseRequest.from_lists read; give the "
                                 "names.")  # fmt: skip
        if self.redirect not in get_args(Redirect):
            known = " or ".join(map(repr, get_args(Redirect)))
            raise ValueError(f"redirect is {self.redirect!r}; choose {known}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r:.80}; give a whole number.")
        for text in self.templates or [""]:
            before, *after = text.replace("{{", "").replace("}}", "").split("{concept}")
            if not after or {"{", "}"} & {*"".join([before, *after])}:
                raise ValueError(f"The template {text!r} must hold {{concept}} alone; mend it.")
        if not self.concepts or not all(name.strip() for name in self.concepts):
            raise ValueError("The concept is empty; name what to forget, e.g. --concept ghost.")
        if not all(name.strip() for name in self.retain):
            raise ValueError("A name to retain is empty; leave it out.")
        if self.anchors and len(self.anchors) != len(self.concepts):
            raise ValueError(
                f"{len(self.anchors)} anchors for {len(self.concepts)} concepts; give one each."
            )
        if self.anchors and self.redirect == "random":
            raise ValueError("Random redirects leave no room for anchors; drop one of the two.")
        for name in ("concepts", "anchors", "retain"):
            object.__setattr__(self, name, tuple(map(spelt, getattr(self, name))))
        self._require_apart()

    def _require_apart(self) -> None:
        """Raise ValueError for a name that stands twice where it may stand once."""
        forgotten, kept = list(map(alike, self.concepts)), list(map(alike, self.retain))
        if lost := [anchor for anchor in self.anchors if alike(anchor) in forgotten]:
            raise ValueError(f"The anchor {lost[0]} is to be forgotten itself; name another.")
        if both := [name for name in self.retain if alike(name) in forgotten]:
            raise ValueError(f"{both[0]} cannot be both forgotten and retained; drop one.")
        for what, names in (("concepts", forgotten), ("retained names", kept)):
            if len(set(names)) < len(names):
                raise ValueError(f"Two of the {what} are the same one; name each once.")


@dataclass(frozen=True)
class Prompt:
    """A prompt, what a judge should see by kind of label, and the kinds that are being erased.

    group: the concept a forget prompt names, else "". anchor: the prompt to answer instead.
    """

    text: str
    labels: Mapping[str, str]
    kinds: tuple[str, ...]
    group: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts that name a forgotten concept, prompts that name none, and the judge's labels."""

    forget: list[Prompt]
    retain: list[Prompt]
    labels: Mapping[str, list[str]]


def expand(request: EraseRequest, catalogue: Catalogue | None) -> PromptSet:
    """All prompts of a request, in an order that depends on nothing but the request.

    Raises ValueError for unknown concepts, anchors that do not fit, an empty retain set, and
    templates beside a catalogue, which has its own.
    """
    if catalogue is None:
        return _expand_plain(request)
    if tuple(request.templates) != PLAIN_TEMPLATES:
        raise ValueError(
            "The model's concepts.json has prompts of its own, so that the template "
            f"{request.templates[0]!r:.80} would go unread; leave templates out."
        )
    return _Expansion(request, catalogue).prompts()


def _expand_plain(request: EraseRequest) -> PromptSet:
    if not request.retain:
        raise ValueError("The retain set is empty; name concepts to keep, e.g. --retain dog car.")
    rng = random.Random(request.seed)
    given = request.anchors or [""] * len(request.concepts)
    anchors = dict(zip(request.concepts, given, strict=True))

    def prompt(template: str, concept: str) -> Prompt:
        text, group, instead = template.format(concept=concept), "", ""
        if concept in anchors:
            fixed = request.redirect == "anchor"
            anchor = anchors[concept] if fixed else rng.choice(request.retain)
            group, instead = concept, template.format(concept=anchor).strip()
        return Prompt(text, {PLAIN_KIND: concept}, (PLAIN_KIND,), group, instead)

    forget, retain = (
        [prompt(template, concept) for concept in concepts for template in request.templates]
        for concepts in (request.concepts, request.retain)
    )
    named = [*request.concepts, *filter(None, request.anchors), *request.retain]
    labels = {alike(name): name for name in named}  # an anchor in the spelling that is retained
    return PromptSet(forget, retain, {PLAIN_KIND: list(labels.values())})


class _Expansion:
    """A request against a catalogue: every object in every style, forgotten or retained."""

    def __init__(self, request: EraseRequest, catalogue: Catalogue):
        self.catalogue = catalogue
        self.anchor_of = _anchors_of(request, catalogue)
        self.kinds = tuple(dict.fromkeys(concept.kind for concept in self.anchor_of))
        self.kept = {find_concept(name, catalogue) for name in request.retain}
        if both := sorted(map(str, self.kept & self.anchor_of.keys())):
            raise ValueError(f"{both[0]} cannot be both forgotten and retained; drop one.")
        self.redirect, self.rng = request.redirect, random.Random(request.seed)

    def prompts(self) -> PromptSet:
        """Forget prompts of cells with a forgotten part, retain prompts of the others."""
        known = self.catalogue
        cells = [(style, known.templates) for style in known.concepts("style")]
        if "style" not in self.kinds:
            cells.insert(0, (NO_STYLE, known.object_templates))
        forget: list[Prompt] = []
        retain: list[Prompt] = []
        for object_ in known.concepts("object"):
            for style, templates in cells:
                forgotten = [part for part in (object_, style) if part in self.anchor_of]
                of_cell = self._of_cell(object_, style, templates, forgotten)
                (forget if forgotten else retain).extend(of_cell)
        if self.kept:
            names = {concept.name for concept in self.kept}
            retain = [prompt for prompt in retain if names & set(prompt.labels.values())]
        if not retain:
            raise ValueError("The retain set is empty; leave some concept to keep.")
        return PromptSet(
            forget, retain, {"object": list(known.objects), "style": list(known.styles)}
        )

    def _of_cell(
        self,
        object_: Concept,
        style: Concept,
        templates: Sequence[str],
        forgotten: Sequence[Concept],
    ) -> Iterator[Prompt]:
        named = [part for part in (object_, style) if part is not NO_STYLE]
        labels: dict[str, str] = {part.kind: part.name for part in named}
        kinds = tuple(part.kind for part in forgotten) or self.kinds
        # A forgotten object is forgotten by its synonyms too; a retained one goes by its name.
        words = self.catalogue.synonyms.get(object_.name, []) if object_ in self.anchor_of else []
        for name in (object_.name, *words):
            for template in templates:
                text, group, anchor = fill(template, name, style.name), "", ""
                if forgotten:
                    instead = [self._instead(part).name for part in (object_, style)]
                    group, anchor = str(forgotten[0]), fill(template, *instead)
                yield Prompt(text, labels, kinds, group, anchor)

    def _instead(self, concept: Concept) -> Concept:
        if concept not in self.anchor_of or self.redirect == "anchor":
            return self.anchor_of.get(concept, concept)
        peers = self.catalogue.concepts(concept.kind)
        return self.rng.choice([peer for peer in peers if peer not in self.anchor_of])


def _anchors_of(request: EraseRequest, catalogue: Catalogue) -> dict[Concept, Concept]:
    """Each forgotten concept with its anchor: as asked for, or one of its kind from far off."""
    forgotten = [find_concept(name, catalogue) for name in request.concepts]
    if len(set(forgotten)) < len(forgotten):
        raise ValueError("Two of the concepts are the same one; name each once.")
    anchors = [find_concept(name, catalogue) for name in request.anchors]
    anchors = anchors or [_default_anchor(concept, forgotten, catalogue) for concept in forgotten]
    for concept, anchor in zip(forgotten, anchors, strict=True):
        if anchor in forgotten:
            raise ValueError(f"The anchor {anchor} is to be forgotten itself; name another.")
        if anchor.kind != concept.kind:
            raise ValueError(
                f"{concept} is of kind {concept.kind} and its anchor {anchor} is not; "
                f"name another {concept.kind}."
            )
    return dict(zip(forgotten, anchors, strict=True))


def _default_anchor(concept: Concept, forgotten: list[Concept], catalogue: Catalogue) -> Concept:
    known = catalogue.anchors.get(str(concept))
    peers = catalogue.concepts(concept.kind)
    start = (peers.index(concept) + len(peers) // 2) % len(peers)
    ring = [find_concept(known, catalogue)] if known else []
    ring += peers[start:] + peers[:start]
    anchor = next((peer for peer in ring if peer not in forgotten), None)
    if anchor is None:
        raise ValueError(f"Nothing is left to draw instead of {concept}; keep some {concept.kind}.")
    return anchor


def find_concept(name: str, catalogue: Catalogue) -> Concept:
    """The catalogue's concept called `name`, `NAME style` or by a synonym; ValueError if none."""
    wanted = alike(name)
    known = catalogue.concepts("style") + catalogue.concepts("object")
    names = {
        alike(word): Concept(object_, "object")
        for object_, words in catalogue.synonyms.items()
        for word in words
    }
    names |= {alike(concept.name): concept for concept in known}
    names |= {alike(str(concept)): concept for concept in known}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see the model's concepts.json."
    raise ValueError(f"The model does not know the concept {name!r}; {hint}")


def in_its_names(request: EraseRequest, catalogue: Catalogue | None) -> EraseRequest:
    """The request in the catalogue's own names, so that two that ask the same are told to."""
    if catalogue is None:
        return request
    asked = request.concepts, request.anchors, request.retain
    concepts, anchors, retain = (
        [str(find_concept(name, catalogue)) for name in names] for names in asked
    )
    retain = list(dict.fromkeys(retain))
    return replace(request, concepts=concepts, anchors=anchors, retain=retain)


def sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts, evenly over their groups, then over each group's; at least one a group."""
    rng, groups = random.Random(seed), by_group(prompts)
    count = max(count, len(groups))
    drawn: list[Prompt] = []
    for place, group in enumerate(groups.values()):
        share = count // len(groups) + (place < count % len(groups))
        rounds = math.ceil(share / len(group))  # shuffled ones, the last not whole
        shuffled = [one for _ in range(rounds) for one in rng.sample(group, len(group))]
        drawn += shuffled[:share]
    return drawn


def by_group(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts by the concept they name."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    return groups
