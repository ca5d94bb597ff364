"""How far an erasure moves what is read of retained prompts, by concept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from erase.core.delta import Delta
from erase.core.names import filter_names
from erase.prompts.request import Prompt
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

MOST = 512  # prompts, but one of each name at least


@torch.no_grad()
def retained_moved(task: DiffusionTask, deltas: Mapping[str, Delta]) -> dict[str, float] | None:
    """|dW r| over |W r| of all tokens r of each retained concept, those moved most first.

    Every retained name counts, before any filter that a method has. There is none where other
    weights change too than read the text.
    """
    if not _reads_text(task, deltas):
        return None
    weights, grams = task.editable(), dict[str, tuple[Tensor, Tensor]]()
    for site, names in task.sites(TEXT).items():
        changed = [name for name in names if name in deltas]
        grams[site] = (
            _gram(deltas[name].dense() for name in changed),
            _gram(weights[name] for name in changed),
        )
    moved: dict[str, float] = {}
    for concept, texts in _named(task.prompts.retain):
        energies = torch.zeros(2).double()
        for site, rows in task.readings(texts).items():
            flat = rows.cpu().double().flatten(0, -2)
            moment = flat.T @ flat
            energies += torch.stack([(gram * moment).sum() for gram in grams[site]])
        change, whole = energies
        moved[concept] = float((change / whole.clamp_min(1e-300)).sqrt())
    return {name: round(moved[name], 4) for name in sorted(moved, key=lambda one: -moved[one])}


def _reads_text(task: DiffusionTask, deltas: Mapping[str, Delta]) -> bool:
    patterns = [pattern for place in task.family.enters.values() for pattern in place]
    reading = filter_names(task.editable(), patterns)
    return bool(reading) and deltas.keys() <= reading.keys()


def _gram(weights: Iterable[Tensor]) -> Tensor:
    """The sum of W^T W [d, d] over weights that read the same."""
    wide = (weight.detach().cpu().double().flatten(1) for weight in weights)
    return sum((weight.T @ weight for weight in wide), torch.zeros(()))


def _named(prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[str]]]:
    """Each retained name of the kinds that are erased, with some of its prompts, evenly apart."""
    named: dict[str, list[str]] = {}
    for prompt in prompts:
        name = ", ".join(prompt.labels[kind] for kind in prompt.kinds if kind in prompt.labels)
        named.setdefault(name or prompt.text, []).append(prompt.text)
    each = max(1, MOST // max(1, len(named)))
    for name, texts in named.items():
        yield name, texts[:: -(-len(texts) // each)]
