"""How far an erasure moves what is read of retained prompts, by concept and by weight."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.delta import Delta
from erase.core.names import filter_names
from erase.prompts.request import Prompt
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

MOST = 512  # prompts, but one of each name at least


@dataclass(frozen=True)
class Moved:
    """|dW r| over |W r| of retained tokens r, by concept over all weights, and by weight over all.

    Those that are moved most come first. prompts: how many were read.
    """

    concepts: Mapping[str, float]
    weights: Mapping[str, float]
    prompts: int


@torch.no_grad()
def retained_moved(task: DiffusionTask, deltas: Mapping[str, Delta]) -> Moved | None:
    """The whole retain list's movement; none where other weights change too than read the text.

    Every retained name counts, before any filter that a method has.
    """
    if not _reads_text(task, deltas):
        return None
    weights, sites = task.editable(), task.sites(TEXT)
    grams = {
        site: [(name, *_grams(weights[name], deltas[name])) for name in names if name in deltas]
        for site, names in sites.items()
    }
    by_concept: dict[str, Tensor] = {}
    by_weight = {name: torch.zeros(2).double() for name in deltas}
    prompts = 0
    for concept, texts in _named(task.prompts.retain):
        prompts += len(texts)
        total = torch.zeros(2).double()
        for site, rows in task.readings(texts).items():
            flat = rows.cpu().double().flatten(0, -2)
            moment = flat.T @ flat
            for name, change, whole in grams[site]:
                energies = torch.stack([(change * moment).sum(), (whole * moment).sum()])
                by_weight[name] += energies
                total += energies
        by_concept[concept] = total
    return Moved(_shares(by_concept), _shares(by_weight), prompts)


def _reads_text(task: DiffusionTask, deltas: Mapping[str, Delta]) -> bool:
    patterns = [pattern for place in task.family.enters.values() for pattern in place]
    reading = filter_names(task.editable(), patterns)
    return bool(reading) and deltas.keys() <= reading.keys()


def _grams(weight: Tensor, change: Delta) -> tuple[Tensor, Tensor]:
    """dW^T dW and W^T W [d, d]."""
    parts = (part.detach().cpu().double().flatten(1) for part in (change.dense(), weight))
    changed, whole = (part.T @ part for part in parts)
    return changed, whole


def _named(prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[str]]]:
    """Each retained name of the kinds that are erased, with some of its prompts, evenly apart."""
    named: dict[str, list[str]] = {}
    for prompt in prompts:
        name = ", ".join(prompt.labels[kind] for kind in prompt.kinds if kind in prompt.labels)
        named.setdefault(name or prompt.text, []).append(prompt.text)
    each = max(1, MOST // max(1, len(named)))
    for name, texts in named.items():
        yield name, texts[:: -(-len(texts) // each)]


def _shares(energies: Mapping[str, Tensor]) -> dict[str, float]:
    """The root of each one's share, those with the largest first."""
    found = {name: float((part[0] / part[1].clamp_min(1e-300)).sqrt())
             for name, part in energies.items()}  # fmt: skip
    return {name: round(found[name], 4) for name in sorted(found, key=lambda one: -found[one])}
