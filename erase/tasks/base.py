"""The protocols through which one method serves UNets, text encoders and classifiers alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Self, TypeVar, runtime_checkable

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
    """A model and what may change in it: what every method needs."""

    seed: int

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """By tensor a basis [d, k] of the inputs of which it is to make what it does; or none."""

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that hold what may change."""

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        """The modules that take part, unchanged."""

    def editable(self) -> dict[str, nn.Parameter]:
        """All tensors that may change, by canonical name `component.path`."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those among them that training changes; closed forms choose by themselves."""

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""

    def architecture(self) -> dict[str, Any]:
        """What loading an erasure asks of the kind of model, as JSON: `loads_lora`, if it does."""

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""


SomeBatch = TypeVar("SomeBatch", bound=Batch)
StepLoss = Callable[[SomeBatch, SomeBatch, float], Tensor]  # of a forget and a retain batch


class Relearning(Protocol):
    """What finetuning on what was forgotten would make of a model."""

    @property
    def rate(self) -> float:
        """How far each step moves every tensor, root mean square."""

    def weights(self) -> Mapping[str, nn.Parameter]:
        """What it moves."""

    def losses(self, batch: Any) -> Iterator[Tensor]:
        """The loss of each step, of the weights as they are when it is asked for."""


class TrainedTask(Task, Protocol[SomeBatch]):
    """Forget and retain batches, and losses to minimise or climb: what trained methods need.

    A pass goes through a set once. What its batches hold, their order, noise and time steps follow
    from the seed alone. Batches are made one by one, when asked for: a training step takes the
    first of a pass of its own.
    """

    finetuning: Finetuning  # what AdamW does to this model without its falling apart

    @property
    def relearning(self) -> Relearning | None:
        """What training is to withstand, if anything."""

    def prepare(self) -> None:
        """Make both sets while the model is still the base; training calls it first."""

    def forget_batches(self, step_seed: int) -> Iterable[SomeBatch]:
        """One shuffled pass through the forget set."""

    def retain_batches(self, step_seed: int) -> Iterable[SomeBatch]:
        """One shuffled pass through the retain set."""

    def saliency_loss(self, batch: SomeBatch) -> Tensor:
        """The forget loss whose gradient is the weights' saliency."""

    def loss(self, batch: SomeBatch) -> Tensor:
        """The model's own training loss: cross-entropy, noise-prediction MSE."""

    def redirected_loss(self, batch: SomeBatch, teacher: Self | None = None) -> Tensor:
        """The loss that teaches the wrong answer: a random label, the anchor concept.

        The answer comes from `teacher`, or from the model as it is now.
        """

    def divergence(self, batch: SomeBatch, teacher: Self, temperature: float = 1.0) -> Tensor:
        """How far predictions are from the teacher's: KL of logits, MSE of noise.

        Both are divided by the temperature and the result multiplied by its square, which leaves
        the MSE as it is.
        """

    def with_redirection_pictures(self) -> Self:
        """The same task, with the forget batches that `redirected_loss` learns most from."""

    def frozen_copy(self, trained: Mapping[str, nn.Parameter] | None = None) -> Self:
        """The same task around the model as it is now, whatever becomes of what is `trained`.

        By default that is `parameters`; of these alone copies are kept.
        """

    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """While in force, `modules` do the work of the components of their names."""


class ProjectedTask(Task, Protocol):
    """What the weights read while the model runs: what projections need."""

    @property
    def targets(self) -> Sequence[str]:
        """Parts a projection may edit, the cheapest first."""

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places where a target's weights read, and which editable weights read there."""

    def record_inputs(
        self, which: SetName, target: str, callback: InputCallback, samples: int
    ) -> None:
        """Run the model over at most `samples` of a set; `callback(site, rows, group)` for each.

        Rows are [n, d], or [n, p, d] where every sample is read at the same p positions. Each of
        several processes runs over its share of the samples.
        """


@runtime_checkable
class DrawingTask(Protocol):
    """What a look at the pictures needs; a classifier draws none."""

    def preview(self) -> Tensor:
        """Pictures [N, 3, H, W] in 0..1 of the forget set, then as many of the retain set."""
