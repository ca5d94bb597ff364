"""States of words among what a pipeline that told of itself hands to its denoisers."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from erase.core.activations import hooked
from erase.core.precision import widened
from erase.models.listening import Leaves, leaves, replaced, same
from erase.tasks.diffusion.heard import HeardCondition
from erase.tasks.diffusion.learned import LearnedDenoiser

NEAR = 0.02  # of what another word changes: states of one text that other batches round otherwise
WORDS = ("thing", "place", "dog", "cat")  # of which some tokenizer makes as many tokens of two
Rows = Mapping[str, Tensor]
_Found = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class HeardStates:
    """The states of some words of a text, by argument.

    condition: what the denoisers are given of the text. places: where in an argument [..., width]
    the words' rows are [...], a mask. rows: those rows [k, width]. apart: how far another word
    moves them [k].
    """

    condition: HeardCondition
    places: Mapping[str, Tensor]
    rows: Rows
    apart: Rows

    def read_as(self, rows: Rows, count: int) -> HeardCondition:
        """What the denoisers are given, `count` times, with other rows in the words' places."""

        def new(name: str, leaf: Any) -> Any:
            if name not in rows:
                return leaf
            return leaf.masked_scatter(self.places[name][..., None], rows[name].to(leaf))

        (calls,) = self.condition.calls
        return HeardCondition([{who: replaced(dict(c), new) for who, c in calls.items()}] * count)

    def put(self, denoiser: LearnedDenoiser, rows: Rows) -> AbstractContextManager[None]:
        """While in force, denoisers that are given the words' own states read these rows."""
        changes = [(self.rows[name], self.apart[name], rows[name]) for name in rows]

        def given(_: Any, *inputs: Any) -> Any:
            return replaced(inputs, lambda _, leaf: _exchanged(leaf, changes))

        modules = [denoiser.modules[name] for name in denoiser.known.names]
        return hooked(m.register_forward_pre_hook(given, with_kwargs=True) for m in modules)


def _exchanged(leaf: Any, changes: list[tuple[Tensor, Tensor, Tensor]]) -> Any:
    """An argument in which each row that is as good as one of the words' is the new one."""
    for own, apart, new in changes:
        numbers = isinstance(leaf, Tensor) and leaf.is_floating_point()
        if numbers and leaf.shape[-1:] == own.shape[1:]:
            for row, far, instead in zip(own, apart, new, strict=True):
                mine = (widened(leaf) - row).norm(dim=-1, keepdim=True) < NEAR * far
                leaf = torch.where(mine, instead.to(leaf), leaf)
    return leaf


@torch.no_grad()
def states_of(denoiser: LearnedDenoiser, count: int) -> tuple[str, HeardStates]:
    """A text of so many words after an "a", and their states: those that other words change most.

    Of what is read of whole prompts there are none. Raises ValueError where words are read alike.
    """
    for word, other in combinations(WORDS, 2):
        text, instead = (f"a {' '.join([one] * count)}" for one in (word, other))
        if _lengths(denoiser, text) != _lengths(denoiser, instead):
            continue
        condition = denoiser.condition([text])
        own, theirs = (
            leaves(one.calls[0][denoiser.known.names[0]])
            for one in (condition, denoiser.condition([instead]))
        )
        words = denoiser.known.denoisers[0].states
        found = {n: most for n in words if (most := _most_changed(own, theirs, n, words[n], count))}
        if found:
            places, rows, apart = ({n: one[i] for n, one in found.items()} for i in range(3))
            return text, HeardStates(condition, places, rows, apart)
    raise ValueError(
        f"A {denoiser.known.pipeline} reads no two of {', '.join(WORDS)} as as many tokens; choose "
        "another attack."
    )


def _lengths(denoiser: LearnedDenoiser, text: str) -> list[int]:
    """How many tokens each tokenizer makes of a text."""
    parts = denoiser.pipeline.components.values()
    spellers = [getattr(part, "tokenizer", part) for part in parts]
    known = [one for one in spellers if isinstance(one, PreTrainedTokenizerBase)]
    return [len(speller(text).input_ids) for speller in known]


def _most_changed(own: Leaves, others: Leaves, name: str, tokens: int, count: int) -> _Found | None:
    """Where an argument changes most along its tokens, those rows, and by how much they do."""
    states, other = own[name], others[name]
    if states.shape != other.shape or same(states, other):
        return None
    moved = (widened(states) - widened(other)).norm(dim=-1)
    by_token = moved.square().movedim(tokens, 0).reshape(moved.shape[tokens], -1).sum(1)
    most = by_token.topk(min(count, len(by_token))).indices
    places = (moved > 0) & torch.zeros_like(moved, dtype=torch.bool).index_fill(tokens, most, True)
    return places, widened(states[places]), moved[places]
