"""The adversary behind the answer: it moves what is to be learnt, and leaves the prompts alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erase.models.conditions import Condition
from erase.tasks.diffusion.adversaries.base import Found
from erase.tasks.diffusion.adversaries.word import Word
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch


class Target(Word):
    """The answer, moved off what a word in the concept's place draws, by as much as lies between.

    What the teacher predicts under the word, e0(word), is to be near what it and the learning model
    predict for the prompt: the search lowers |e0(word) - e(prompt)|^2 + |e0(word) - e0(prompt)|^2.
    The answer e0(anchor) that is learnt becomes e0(anchor) - (e0(word) - e0(anchor)); whatever else
    a method teaches moves by as much. Raises ValueError for methods that teach no answer for forget
    prompts but lead away from the model's own, which this would lead back.

    Source: the erasure target of AEGIS (Li et al., ICLR 2026). Differences: it has the empty prompt
    for the anchor; its word stands alone, is kept all through training and takes one step of the
    gradient's sign an epoch, ours takes its steps from a random word for every batch; its model
    answers to an adversary's prompt too, ours to its own; and it has no retain set, but a distance
    from the base, whose gradient is rectified by the erasure's. The method's retain set stays in
    use here, and its gradients are left as they are.
    """

    def found(self, batch: DiffusionBatch) -> Found:
        """The word, by text encoder [1, width]."""
        with self._search(batch) as search:
            return search.found(batch)

    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the teacher reads with the word in the concept's place."""
        with self.teacher() as teacher:
            return Word(teacher, self.steps, self.reach).condition(batch, found)

    def error(self, batch: DiffusionBatch, text: Condition) -> Tensor:
        """What the search lowers, under this reading: half of it, without what no word changes."""
        with self._search(batch) as search:
            return search.error(batch, text)

    def prediction(self, batch: DiffusionBatch) -> Tensor:
        """The output under the batch's own prompts, moved against what the answer moves by."""
        if not self.asked:
            raise ValueError("The adversary \"target\" moves the answer that is learnt for forget "
                             "prompts, and this method teaches none; choose another adversary, or "
                             "another method, as salun.")  # fmt: skip
        with self._search(batch) as search, torch.no_grad():
            word = search.denoiser.denoise(batch, search.condition(batch, search.found(batch)))
            move = word - _read(search.denoiser, batch, batch.anchors)
        return _read(self.denoiser, batch, batch.prompts) + move

    @contextmanager
    def _search(self, batch: DiffusionBatch) -> Iterator["_Towards"]:
        """The search for the word; while in force, the model is the teacher."""
        with torch.no_grad():
            own = _read(self.denoiser, batch, batch.prompts)
        with self.teacher() as teacher:
            with torch.no_grad():
                middle = (own + _read(teacher, batch, batch.prompts)) / 2
            yield _Towards(teacher, self.steps, self.reach, aim=middle)


@dataclass(frozen=True)
class _Towards(Word):
    """A word under which the predictions [B, C, h, w] are near others."""

    aim: Tensor = field(kw_only=True)

    def error(self, batch: DiffusionBatch, text: Condition) -> Tensor:
        """The sum of their distances where pictures show the concept, under this reading."""
        assert batch.shows is not None
        shows = batch.shows.to(self.denoiser.device)
        apart = self.denoiser.denoise(batch, text) - self.aim
        return (shows * apart.square().flatten(1).mean(1)).sum()


def _read(denoiser: ConditionedDenoiser, batch: DiffusionBatch, prompts: Sequence[str]) -> Tensor:
    return denoiser.denoise(batch, denoiser.condition(prompts))
