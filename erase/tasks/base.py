"""The protocol through which one method serves UNets, text encoders and classifiers alike."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Self

from torch import Tensor, nn

from erase.prompts.catalogue import Finetuning

SetName = Literal["forget", "retain"]
InputCallback = Callable[[str, Tensor, str], None]


class Batch(Protocol):
    """Some samples of the forget or the retain set, ready for a loss."""

    def __len__(self) -> int:
        """How many samples."""

    def shard(self, rank: int, world: int) -> Self:
        """Every `world`-th sample, from `rank` on."""


class Task(Protocol):
    """A model, its forget and retain sets, and the losses a method may minimise or climb.

    A pass goes through a set once; what its batches hold, their order, noise and time steps,
    depends on the seed alone. Batches are made as they are asked for, so that a training step may
    take the first batch of a pass of its own.
    """

    components: Mapping[str, nn.Module]  # hold what may change
    frozen: Mapping[str, nn.Module]  # take part, unchanged
    draws: bool  # whether there are pictures to look at
    targets: Sequence[str]  # parts a projection may edit, the cheapest first
    seed: int
    finetuning: Finetuning  # what AdamW does to this model without its falling apart

    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors that training changes, by canonical name `component.path`."""

    def editable(self) -> dict[str, nn.Parameter]:
        """All tensors that may change; closed forms choose among them."""

    def prepare(self) -> None:
        """Make both sets while the model is still the base; training calls it first."""

    def forget_batches(self, step_seed: int) -> Iterable[Batch]:
        """One shuffled pass through the forget set."""

    def retain_batches(self, step_seed: int) -> Iterable[Batch]:
        """One shuffled pass through the retain set."""

    def saliency_loss(self, batch: Batch) -> Tensor:
        """The forget loss whose gradient is the weights' saliency."""

    def loss(self, batch: Batch) -> Tensor:
        """The model's own training loss: cross-entropy, noise-prediction MSE."""

    def redirected_loss(self, batch: Batch, teacher: "Task | None" = None) -> Tensor:
        """The loss that teaches the wrong answer: a random label, the anchor concept.

        The answer comes from `teacher`, or from the model as it is now.
        """

    def divergence(self, batch: Batch, teacher: "Task") -> Tensor:
        """How far predictions are from the teacher's: KL of logits, MSE of noise."""

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places where a target's weights read, and which editable weights read there."""

    def record_inputs(
        self, which: SetName, target: str, callback: InputCallback, samples: int
    ) -> None:
        """Run over at most `samples` of a set; `callback(site, read, group)` what is read.

        That is rows [n, d], or [n, p, d] where the same p positions are read of every sample. Of
        several processes each hears its share of the samples.
        """

    def with_redirection_pictures(self) -> "Task":
        """The same task, its forget batches being what `redirected_loss` is best taught on."""

    def frozen_copy(self) -> "Task":
        """The same task around a copy of the model as it is now, without gradients."""

    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """While in force, `modules` do the work of the components of their names."""

    def preview(self) -> Tensor:
        """Pictures [N, 3, H, W] in 0..1 of the forget set, then as many of the retain set.

        Of tasks that draw.
        """

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""

    def architecture(self) -> dict[str, Any]:
        """What loading an erasure asks of the kind of model, as JSON: `loads_lora`, if it does."""

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""
