"""Forgetting part of the training set of any classifier."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, default_collate

from erase.core.activations import capture_inputs, projectable_layers, weight_name
from erase.core.fingerprint import combined, fingerprint
from erase.core.names import canonical, filter_names, named_parameters, require_in_force, unwrapped
from erase.core.precision import at_least_float32, computed_in_float32
from erase.core.seeds import seeded
from erase.core.snapshot import Snapshot
from erase.prompts.catalogue import Finetuning
from erase.prompts.seeds import HELD_OUT_SEED
from erase.support.distributed import shard_of, shards_asked
from erase.tasks.base import InputCallback, SetName
from erase.tasks.classification.config import ClassificationBatch, ClassificationTaskConfig
from erase.tasks.classification.fit import (
    BATCH,
    FitConfig,
    chance_of,
    fit,
    head_of,
    logits_of,
    size_of,
    untrained_copy,
)
from erase.tasks.classification.rows import Rows, as_indices, labels_of

LAST, ALL, HEAD = "last_layers", "layers", "head"
LAST_SHARE = 0.25
RETAIN_WEIGHT, ANCHORED = 30.0, 3.0  # found on data held out: docs/classifiers.md
SHOWN = 8  # samples that tell a data set


class ClassificationTask:
    """The Task of a classifier and the indices it is to forget of its training set.

    `dataset` is map-style and gives (input, label); `forget` are indices or a mask, as a list, an
    array or a tensor; `model` returns logits [B, classes], or an
    object that holds them as `logits`. The model stays in evaluation mode, so that the running
    statistics of its norms, which are no weights, stay as they are. `build` makes an untrained
    model for the methods that need one; by default all layers are reset, if all can be. `recipe` is
    how the original was trained, which Retrain repeats. Raises ValueError for indices that do not
    fit and for an empty forget or retain set.
    """

    frozen: Mapping[str, nn.Module] = {}
    _held = Snapshot((), ())  # of what training changes
    targets: Sequence[str] = (LAST, ALL, HEAD)

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        forget: Any,
        classes: int,
        config: ClassificationTaskConfig | None = None,
        seed: int = 0,
        learning_rate: float = 1e-3,
        build: Callable[[], nn.Module] | None = None,
        recipe: FitConfig | None = None,
    ):
        self.components: Mapping[str, nn.Module] = {"model": unwrapped(model.eval())}
        self._build, self.recipe = build, recipe or FitConfig()
        self.config = config or ClassificationTaskConfig()
        require_in_force(model.modules(), self.editable())
        self.seed = seed
        self.finetuning = Finetuning(
            learning_rate, anchored_rate=ANCHORED * learning_rate, retain_weight=RETAIN_WEIGHT
        )
        self.dataset = dataset if isinstance(dataset, Rows) else Rows(dataset, classes)
        self.classes, self.forget = classes, as_indices(forget, len(self.dataset))
        chosen = set(self.forget)
        self.retain = [index for index in range(len(self.dataset)) if index not in chosen]
        if not self.forget or not self.retain:
            empty = "retain" if self.forget else "forget"
            raise ValueError(f"The {empty} set is empty; leave samples in both.")

    def parameters(self) -> dict[str, nn.Parameter]:
        """The editable tensors, by canonical name such as `model.conv1.weight`."""
        everything = named_parameters(self.components)
        return filter_names(everything, self.config.include, self.config.exclude)

    editable = parameters

    def prepare(self) -> None:
        """Fit the model that stands for never having learnt the forget set, if it is asked."""
        if self.config.redirect == "held_out":
            _ = self.held_out

    def forget_batches(self, step_seed: int) -> Iterator[ClassificationBatch]:
        """One shuffled pass through the forget set."""
        answers = self.held_out if self.config.redirect == "held_out" else None
        return self._batches(self.forget, step_seed, answers)

    def retain_batches(self, step_seed: int) -> Iterator[ClassificationBatch]:
        """One shuffled pass through the retain set."""
        return self._batches(self.retain, step_seed)

    def training_batches(self, step_seed: int) -> Iterator[ClassificationBatch]:
        """One shuffled pass through both sets together."""
        return self._batches(range(size_of(self.dataset)), step_seed)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes]."""
        with self._held.in_place():
            return logits_of(self.components["model"], inputs)

    def loss(self, batch: ClassificationBatch) -> Tensor:
        """Cross-entropy with the true labels."""
        return F.cross_entropy(self.predict(batch.inputs), batch.labels)

    relearning = None  # is not offered
    kept: Mapping[str, Tensor] = {}  # nor is this
    saliency_loss = loss

    def redirected_loss(
        self, batch: ClassificationBatch, teacher: "ClassificationTask | None" = None
    ) -> Tensor:
        """Cross-entropy with the answers to give instead; no teacher is asked."""
        return F.cross_entropy(self.predict(batch.inputs), batch.answers)

    def divergence(
        self, batch: ClassificationBatch, teacher: "ClassificationTask", temperature: float = 1.0
    ) -> Tensor:
        """KL divergence of the softened predictions from the teacher's, in nats a sample."""
        with torch.no_grad():
            answer = (teacher.predict(batch.inputs) / temperature).log_softmax(1)
        ours = (self.predict(batch.inputs) / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(ours, answer, reduction="batchmean", log_target=True)

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places where a target's weights read, and which; ValueError for no target of it."""
        if target not in self.targets:
            raise ValueError(f"There is no target {target}; name one of {', '.join(self.targets)}.")
        layers = self._layers(target).items()
        return {name: [f"{name}.{weight_name(layer)}"] for name, layer in layers}

    @torch.no_grad()
    def record_inputs(
        self, which: SetName, target: str, callback: InputCallback, samples: int
    ) -> None:
        """Hear what a target's linear layers and convolutions read of `samples` samples."""
        indices = self.forget if which == "forget" else self.retain
        order = torch.randperm(len(indices), generator=seeded(self.seed))[:samples].tolist()
        layers, wide = self._layers(target), computed_in_float32(self.components.values())
        with wide, capture_inputs(layers, lambda site, rows: callback(site, rows, "")):
            for start in shard_of(range(0, len(order), self.config.batch_size)):
                rows = order[start : start + self.config.batch_size]
                self.predict(self._collate([indices[row] for row in rows])[0])

    @contextmanager
    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """While in force, the module of the name "model" does the work of the model."""
        own, self.components = self.components, modules
        try:
            yield
        finally:
            self.components = own

    def with_redirection_pictures(self) -> "ClassificationTask":
        """This task: its samples are all there is."""
        return self

    def frozen_copy(
        self, trained: Mapping[str, nn.Parameter] | None = None
    ) -> "ClassificationTask":
        """The same task around the model as it is now, whatever becomes of what is `trained`."""
        model = self.components["model"]
        if shards_asked():
            return self._with_model(copy.deepcopy(model).requires_grad_(False))
        teacher = self._with_model(model)
        changing = self.parameters() if trained is None else trained
        teacher._held = Snapshot([model], changing.values())
        return teacher

    def untrained(self, seed: int | None = None) -> "ClassificationTask":
        """The same task around an untrained model, drawn from the task's or another seed."""
        with chance_of(self.seed if seed is None else seed, on_devices=True):
            model = self._build() if self._build else untrained_copy(self.components["model"])
        parameter = next(self.components["model"].parameters())
        return self._with_model(model.to(parameter.device, at_least_float32(parameter.dtype)))

    def _with_model(self, model: nn.Module) -> "ClassificationTask":
        return ClassificationTask(
            model, self.dataset, self.forget, self.classes, self.config, self.seed,
            self.finetuning.learning_rate, self._build, self.recipe,
        )  # fmt: skip

    def state(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Parameters and floating-point buffers, of another model if one is given, by name."""
        tensors = (model or self.components["model"]).state_dict()
        return {canonical("model", name): t for name, t in tensors.items() if t.is_floating_point()}

    def subset(self, indices: Sequence[int]) -> Subset:
        """These samples of the training set."""
        return Subset(self.dataset, list(indices))

    def head(self) -> tuple[str, nn.Linear]:
        """The last linear layer, which gives the logits, and its canonical name."""
        path, layer = head_of(self.components["model"])
        return canonical("model", path), layer

    def forgotten_classes(self) -> list[int]:
        """The classes whose every sample is to be forgotten."""
        kept = set(self.labels[self.retain].tolist())
        return sorted(set(self.labels[self.forget].tolist()) - kept)

    @cached_property
    def held_out(self) -> Tensor:
        """Probabilities [n, classes] that a model fitted to the retain set gives the forget set."""
        seed = self.seed + HELD_OUT_SEED
        fresh = self.untrained(seed).components["model"]
        epochs = self.config.held_out_epochs or max(1, self.recipe.epochs // 2)
        brief = replace(self.recipe, epochs=epochs)
        fit(fresh, self.subset(self.retain), brief, seed)
        with torch.no_grad():
            parts = [
                logits_of(fresh, self._collate(self.forget[i : i + BATCH])[0]).softmax(1)
                for i in range(0, len(self.forget), BATCH)
            ]
        return torch.cat(parts)

    @cached_property
    def labels(self) -> Tensor:
        """The labels of the whole training set [n]."""
        return labels_of(self.dataset)

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""
        base = combined(fingerprint(tensor) for tensor in self.state().values())
        with chance_of(0):  # that augmentation may draw from
            first = self._collate(self.forget[:SHOWN])
        shown = map(fingerprint, first)
        split = combined([str(size_of(self.dataset)), *shown, *map(str, self.forget)])
        return {"base": base, "forget set": split, "retain set": split}

    def architecture(self) -> dict[str, Any]:
        """Of any: that it is a classifier's."""
        return {"family": "classifier"}

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""
        return {
            "config": asdict(self.config),
            "forget": len(self.forget),
            "retain": len(self.retain),
            "forget_set": self.fingerprints()["forget set"],
            "finetuning": asdict(self.finetuning),
        }

    def _layers(self, target: str) -> dict[str, nn.Module]:
        """The layers that may change, in order: all, the last quarter, or the last alone."""
        editable = self.parameters()
        layers = {
            name: layer
            for name, layer in projectable_layers(self.components["model"], "model").items()
            if f"{name}.{weight_name(layer)}" in editable
        }
        count = {ALL: len(layers), LAST: math.ceil(LAST_SHARE * len(layers)), HEAD: 1}[target]
        return dict(list(layers.items())[max(0, len(layers) - count) :])

    def _batches(
        self, indices: Sequence[int], step_seed: int, answers: Tensor | None = None
    ) -> Iterator[ClassificationBatch]:
        generator = seeded(step_seed)
        order = torch.randperm(len(indices), generator=generator)
        for rows in order.split(self.config.batch_size):
            with chance_of(step_seed + int(rows[0])):
                inputs, labels = self._collate([indices[row] for row in rows.tolist()])
            # A step of 1 to classes - 1 from the true label, so that it is never drawn itself.
            steps = torch.randint(1, self.classes, (len(rows),), generator=generator)
            wrong = (labels + steps.to(labels.device)) % self.classes
            yield ClassificationBatch(inputs, labels, wrong if answers is None else answers[rows])

    def _collate(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        parameter = next(self.components["model"].parameters())
        inputs, labels = default_collate([self.dataset[index] for index in indices])
        dtype = at_least_float32(parameter.dtype)
        return inputs.to(parameter.device, dtype), labels.to(parameter.device)
