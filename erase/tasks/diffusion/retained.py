"""How far an erasure moves what is read of retained prompts, by concept and by weight."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """|dW r| over |W r| of all tokens r of retained prompts, those moved most first.

    By concept over all weights, and by weight over all concepts.
    """

    concepts: Mapping[str, float]
    weights: Mapping[str, float]


@torch.no_grad()
def retained_moved(task: DiffusionTask, deltas: Mapping[str, Delta]) -> Moved | None:
    """The whole retain list's movement; none where other weights change too than read the text.

    Every retained name counts, before any filter that a method has.
    """
    if not _reads_text(task, deltas):
        return None
    weights = task.editable()
    sites = {site: [n for n in names if n in deltas] for site, names in task.sites(TEXT).items()}
    grams = {
        site: [_gram(deltas[n].dense() for n in names), _gram(weights[n] for n in names)]
        for site, names in sites.items()
    }
    concepts, moments = dict[str, Tensor](), dict.fromkeys(sites, torch.zeros(()))
    for concept, texts in _named(task.prompts.retain):
        seen = {site: _gram([rows.flatten(0, -2)]) for site, rows in task.readings(texts).items()}
        moments = {site: moments[site] + moment for site, moment in seen.items()}
        energies = [_energies(grams[site], moment) for site, moment in seen.items()]
        concepts[concept] = torch.stack(energies).sum(0)
    by_weight = {
        name: _energies([_gram([deltas[name].dense()]), _gram([weights[name]])], moments[site])
        for site, names in sites.items()
        for name in names
    }
    return Moved(_shares(concepts), _shares(by_weight))


def _reads_text(task: DiffusionTask, deltas: Mapping[str, Delta]) -> bool:
    patterns = [pattern for place in task.family.enters.values() for pattern in place]
    reading = filter_names(task.editable(), patterns)
    return bool(reading) and deltas.keys() <= reading.keys()


def _gram(matrices: Iterable[Tensor]) -> Tensor:
    """The sum of A^T A [d, d] over matrices A [*, d]."""
    wide = (matrix.detach().cpu().double().flatten(1) for matrix in matrices)
    return sum((matrix.T @ matrix for matrix in wide), torch.zeros(()))


def _energies(grams: Iterable[Tensor], moment: Tensor) -> Tensor:
    """The squared lengths of what inputs of this moment [d, d] become, one by each Gram matrix."""
    return torch.stack([(gram * moment).sum() for gram in grams])


def _shares(energies: Mapping[str, Tensor]) -> dict[str, float]:
    """The root of each one's share, those with the largest first."""
    found = {name: float((change / whole.clamp_min(1e-300)).sqrt())
             for name, (change, whole) in energies.items()}  # fmt: skip
    return {name: round(found[name], 4) for name in sorted(found, key=lambda one: -found[one])}


def _named(prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[str]]]:
    """Each retained name of the kinds that are erased, with some of its prompts, evenly apart."""
    named: dict[str, list[str]] = {}
    for prompt in prompts:
        name = ", ".join(prompt.labels[kind] for kind in prompt.kinds if kind in prompt.labels)
        named.setdefault(name or prompt.text, []).append(prompt.text)
    each = max(1, MOST // max(1, len(named)))
    for name, texts in named.items():
        yield name, texts[:: -(-len(texts) // each)]
