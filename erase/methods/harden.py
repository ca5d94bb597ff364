"""Harden: an erased model's weights give way to noise, and a student learns its answers anew."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.delta import Delta, deltas_between
from erase.core.names import filter_names
from erase.core.precision import widened
from erase.core.seeds import seeded
from erase.erasure.erasure import Erasure
from erase.methods import Needs, register
from erase.methods.projection import ProjectionConfig, projection
from erase.prompts.request import sample
from erase.support.config import PartShare, Positive, Share, ShareOrNone
from erase.support.distributed import launched
from erase.support.pictures import load_folder
from erase.tasks.diffusion.blank_words import blank_words_, spelt_tables
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.picture_sets import batches_of
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig, TrainingConfig, with_defaults
from erase.training.loop import finetune, step_number
from erase.training.preserve import restored_parameters

RATE = 4  # times what the task suggests for weights that begin where they are to end
ORIGINAL = 4  # bytes of a weight before it was noised
PART = 4  # of a batch, one in so many shows what must not come back; that takes many passes
TOGETHER = 32  # pictures drawn at a time


@dataclass(frozen=True)
class HardenConfig(TrainedConfig):
    """How much of the weights gives way to noise, and how the rest is learnt anew.

    Args:
        folder: the erasure to harden. By default a projection of what is asked, or none where
            answers are those to anchors.
        effort: the cost, as a share of training the model anew.
        retraining_pictures: what that takes, steps times batch. The default is of the bundled
            model's oracles.
        noise: the share of a weight that noise takes.
        size: of the noise, in deviations of the matrix. Standard ones, of its own weights.
        layers: patterns of tensors. By default all of the denoiser's are noised but biases and
            norms, and all of the denoiser learns.
        words: "mean" leaves nothing of words that only forget prompts hold. "keep" leaves them in
            the text encoders as the erasure has them.
        pictures: how many of the teacher's pictures are at hand.
        uses: how often each is learnt from, about.
        forget_share: of them, those of forget prompts.
        empty_share: of answers, those to the empty prompt. Guidance needs them.
        retain_folder: pictures to learn from instead. Retain prompts are their captions, in turn.
        answers: whose answers are learnt. Those of the erased model, or of the model as it was to
            anchors ("anchor"). Anchors drawn by lot (`redirect` of "random") teach all of them at
            once, so that what is drawn is nothing in particular.
        training: the optimizer's settings. max_train_steps of 0 are what the effort allows, a
            learning_rate of 0 is four times what the task suggests.
    """

    keeps = False
    folder: str = ""
    effort: Share = 0.1
    retraining_pictures: Positive[int] = 256_000
    noise: Share = 0.5
    size: Positive[float] = 0.25
    layers: Sequence[str] = ()
    words: Literal["mean", "keep"] = "mean"
    pictures: Positive[int] = 768
    uses: Positive[int] = 32
    forget_share: ShareOrNone = 0.06
    empty_share: PartShare = 0.1
    retain_folder: str = ""
    answers: Literal["erased", "anchor"] = "erased"
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(lr_warmup_steps=50), kw_only=True
    )


def _needs(task: DiffusionTask, config: HardenConfig) -> Needs:
    changing = _noised(task, config), _learning(task, config), _word_tables(task, config)
    trained = {name: weight for part in changing for name, weight in part.items()}
    return Needs(trained, _training(task, config), teachers=1, extra_per_weight=ORIGINAL)


@register("harden", HardenConfig, DiffusionTask, _needs)
def harden(task: DiffusionTask, config: HardenConfig) -> Erasure:
    """Noise and distil (UNDO; Lee et al., NeurIPS 2025, arXiv 2506.06278, of language models).

    The teacher is the model with the erasure in force, or as it was where anchors are answered; it
    draws pictures as training goes, and the student, W <- (1 - noise) W + noise s N of every matrix
    W of the erased model, with s `size` deviations of W and N standard normal, learns to predict
    what the teacher predicts of them, noised.

    Differences from the paper: the noise is of each matrix' own size (theirs that of a fresh
    model), vectors have none, the loss is the mean squared error of predictions (theirs the
    divergence of next words), and words that forget prompts alone hold are replaced by the mean
    word, as a text encoder that never read them has nothing to say of them. Raises ValueError for
    an erasure of another model, and for layers that fit no matrix that may change.
    """
    noised, learning = _noised(task, config), _learning(task, config)
    changing = noised | learning | _word_tables(task, config)
    erasure = _erasure_of(task, config)
    if _resists(task):
        next(iter(task.forget_batches(0)))  # what must not come back is drawn by the base
    of_erasure = filter_names(task.editable(), list(erasure.deltas))
    base = task.frozen_copy(changing | of_erasure) if config.answers == "anchor" else None
    with erasure.apply(task.components):
        teacher = base or task.frozen_copy(changing)
        with restored_parameters(changing):
            make_noisy_(noised, config.noise, config.size, task.seed)
            blanked = blank_words_(task) if config.words == "mean" else {}
            deltas = finetune_student(task, teacher, config, learning)
            student = {name: _moved(weight, deltas.get(name)) for name, weight in changing.items()}
    before = {name: weight.detach() for name, weight in changing.items()}
    facts = {"teacher": {key: erasure.recipe[key] for key in ("method", "config", "run")
                         if key in erasure.recipe}, "blanked_words": blanked}  # fmt: skip
    return Erasure({**erasure.deltas, **deltas_between(before, student)}, facts)


def _erasure_of(task: DiffusionTask, config: HardenConfig) -> Erasure:
    """What the teacher has forgotten; ValueError if that changes what may not change here."""
    if not config.folder:
        return Erasure({}) if config.answers == "anchor" else projection(task, ProjectionConfig())
    erasure = Erasure.from_pretrained(config.folder)
    if strange := sorted(set(erasure.deltas) - set(task.editable())):
        raise ValueError(f"The erasure in {config.folder} changes {strange[0]}, which may not "
                         "change here; widen the task's components and patterns.")  # fmt: skip
    return erasure


def _resists(task: DiffusionTask) -> bool:
    """Whether it trains against an adversary or against relearning."""
    return bool(task.relearning or task.config.adversary_kind)


def _training(task: DiffusionTask, config: HardenConfig) -> TrainingConfig:
    parts = config.training.gradient_accumulation_steps
    pictures = config.effort * config.retraining_pictures
    steps = math.ceil(pictures / (parts * task.config.batch_size))
    return with_defaults(config.training, RATE * task.finetuning.learning_rate, steps)


def _learning(task: DiffusionTask, config: HardenConfig) -> dict[str, nn.Parameter]:
    """What the student learns: the denoiser, and what is noised beside it."""
    return filter_names(task.editable(), _denoisers(task)) | _noised(task, config)


def _denoisers(task: DiffusionTask) -> list[str]:
    return [f"{name}.*" for name in (task.family.denoiser, *task.family.others)]


def _noised(task: DiffusionTask, config: HardenConfig) -> dict[str, nn.Parameter]:
    """The matrices and kernels that are noised; ValueError for none."""
    layers = list(config.layers) or _denoisers(task)
    fitting = filter_names(task.editable(), layers)
    if not (found := {name: weight for name, weight in fitting.items() if weight.ndim > 1}):
        raise ValueError(
            f"No matrix of {', '.join(task.components)} that may change fits {layers}; widen the "
            "layers, or what may change."
        )
    return found


@torch.no_grad()
def make_noisy_(weights: Mapping[str, Tensor], share: float, size: float, seed: int) -> None:
    """Replace each weight [...] by (1 - share) of itself and share of noise.

    The noise is so many of the weight's own deviations in size, and drawn on the CPU in float32, in
    the order given.
    """
    generator = seeded(seed)
    for weight in weights.values():
        wide = widened(weight)
        noise = torch.randn(weight.shape, generator=generator).to(wide)
        weight.copy_((1 - share) * wide + share * size * wide.std() * noise)


def _word_tables(task: DiffusionTask, config: HardenConfig) -> dict[str, nn.Parameter]:
    """The tables of words that may change, by canonical name."""
    if config.words == "keep":
        return {}
    tables = {id(table) for table, _ in spelt_tables(task).values()}
    return {name: weight for name, weight in task.editable().items() if id(weight) in tables}


def _moved(weight: Tensor, delta: Delta | None) -> Tensor:
    """A copy of the weight after a change."""
    wide = widened(weight.detach())
    return wide.clone() if delta is None else wide + delta.dense().to(wide)


def finetune_student(
    task: DiffusionTask,
    teacher: DiffusionTask,
    config: HardenConfig,
    learning: Mapping[str, nn.Parameter],
) -> dict[str, Delta]:
    """What learning from the teacher changes of the noised weights."""
    training = _training(task, config)
    taught: DiffusionTask = TaughtTask(task, teacher, config, training)

    def step_loss(forget: DiffusionBatch, shown: DiffusionBatch, progress: float) -> Tensor:
        with torch.no_grad():
            answer = teacher.predict(shown, shown.anchors)
        loss = F.mse_loss(taught.training_prediction(shown), answer)
        return loss + taught.redirected_loss(forget) if task.config.adversary_kind else loss

    return finetune(taught, step_loss, training, parameters=learning)


class TaughtTask(DiffusionTask):
    """A task whose batches show what a teacher draws while training goes on.

    Picture i is of prompt i and seed i; a batch is of some of a window of them, which moves on by
    so much that each is shown about `uses` times. What a batch shows follows from its number alone,
    so that training goes on from a checkpoint with the same pictures.
    """

    def __init__(
        self,
        task: DiffusionTask,
        teacher: DiffusionTask,
        config: HardenConfig,
        training: TrainingConfig,
    ):
        super().__init__(
            task.denoiser.pipeline, task.prompts, task.sampling, task.config, task.seed,
            finetuning=task.finetuning, sets=task._sets, like=task.denoiser,
        )  # fmt: skip
        self._teacher, self._how = teacher, config
        batches = training.max_train_steps * training.gradient_accumulation_steps
        self._moves = self.config.batch_size / config.uses
        self._window = min(config.pictures, batches * self.config.batch_size)
        self.texts, self.answered = self._chosen(self._window + math.ceil(batches * self._moves))
        self._drawn: dict[int, Tensor] = {}  # latents, by the place of the first of them

    def _chosen(self, count: int) -> tuple[list[str], list[str]]:
        """Prompts, the forget set's evenly among the others, and what is answered for them."""
        share, seed = self._how.forget_share, self.seed
        forget = iter(sample(self.prompts.forget, count, seed))
        retain = iter(sample(self.prompts.retain, count, seed))
        due = (math.floor((i + 1) * share) > math.floor(i * share) for i in range(count))
        chosen = [next(forget if one else retain) for one in due]
        anchored = self._how.answers == "anchor"
        answered = [one.anchor if anchored and one.group else one.text for one in chosen]
        return [one.text for one in chosen], answered

    def describe(self) -> dict[str, Any]:
        """The data of the task, and how it is taught, which tells its checkpoints from others."""
        how = replace(self._how, training=TrainingConfig())
        return super().describe() | {"taught": asdict(how)}

    def prepare(self) -> None:
        """Read the folder of pictures, if one is given; the teacher's are drawn as they are due."""
        if self._how.retain_folder:
            _ = self._given

    def forget_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One batch of either set's prompts; a part of one, of what must not come back."""
        if not _resists(self):
            return self.retain_batches(step_seed)
        samples = self._sets.samples(self._shown)
        processes = launched().num_processes
        part = math.ceil(self.config.batch_size / PART / processes) * processes
        return batches_of(self.denoiser, part, step_seed, *samples)

    def frozen_copy(self, trained: Mapping[str, nn.Parameter] | None = None) -> DiffusionTask:
        """The teacher, whose answers are learnt here."""
        return self._teacher

    def redirected_loss(self, batch: DiffusionBatch, teacher: object = None) -> Tensor:
        """MSE to what the teacher answers the prompts, or their anchors where those are learnt."""
        anchored = self._how.answers == "anchor"
        with torch.no_grad():
            answer = self._teacher.predict(batch, batch.anchors if anchored else batch.prompts)
        return F.mse_loss(self.training_prediction(batch, self._teacher), answer)

    def retain_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One batch of either set's prompts; its anchors are the prompts that are answered."""
        generator, count = seeded(step_seed), self.config.batch_size
        first = math.floor(self._moves * step_number(self.seed, step_seed))
        rows = (first + torch.randint(self._window, (count,), generator=generator)).tolist()
        empty = (torch.rand(count, generator=generator) < self._how.empty_share).tolist()
        texts, answered = (
            ["" if e else known[row] for row, e in zip(rows, empty, strict=True)]
            for known in (self.texts, self.answered)
        )
        latents = self._latents(rows, first).to(self.denoiser.device)
        yield replace(self.denoiser.noised(latents, texts, generator), anchors=answered)

    def _latents(self, rows: Sequence[int], first: int) -> Tensor:
        """The pictures at these places [n, C, h, w], of a window that begins at the first."""
        if self._how.retain_folder:
            return self._given[[row % len(self._given) for row in rows]]
        starts = range(first - first % TOGETHER, first + self._window, TOGETHER)
        self._drawn = {start: self._block(start) for start in starts}
        return torch.stack([self._drawn[row - row % TOGETHER][row % TOGETHER] for row in rows])

    def _block(self, start: int) -> Tensor:
        """The pictures from a place on, drawn unless they are at hand."""
        if start in self._drawn:
            return self._drawn[start]
        places = range(start, min(start + TOGETHER, len(self.answered)))
        draw, teacher = self._sets.draw, self._teacher
        with teacher._own_weights():
            return draw(teacher.denoiser, self.answered, "teacher's pictures", places=places)

    @cached_property
    def _given(self) -> Tensor:
        """The folder's pictures as latents [N, C, h, w]."""
        latents, ready = self.denoiser.latents, self.denoiser.ready
        pictures = load_folder(Path(self._how.retain_folder))
        return torch.cat([latents(ready(picture)) for picture in pictures])
