"""Epochs in which a pass through the forget set and one through the retain set take turns."""

from dataclasses import dataclass

from erase.tasks.base import SomeBatch, TrainedTask


@dataclass(frozen=True)
class Turns:
    """How many of a training's steps a pass through either set takes.

    A pass is as many batches as its set fills; the loop draws each anew.
    """

    forget: int
    retain: int
    steps: int

    def forgets(self, progress: float, epochs: int | None = None) -> bool:
        """Whether the step is one of a pass through the forget set, of the first `epochs` only."""
        epoch, place = divmod(round(progress * self.steps), self.forget + self.retain)
        return place < self.forget and (epochs is None or epoch < epochs)


def turns_of(task: TrainedTask[SomeBatch], steps: int) -> Turns:
    """The turns of a training of so many steps; makes every batch once to count them."""
    task.prepare()
    passes = task.forget_batches(task.seed), task.retain_batches(task.seed)
    forget, retain = (sum(1 for _ in batches) for batches in passes)
    return Turns(forget, retain, steps)
