"""One call from a data set, a classifier and a forget set to a measured Erasure in a folder."""

import copy
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from erase.erasure.erasure import FILES, Erasure
from erase.evaluate.classifiers.gaps import Shadows, Split, gap_report, scaled_confidence
from erase.evaluate.classifiers.report import FILES as REPORT_FILES
from erase.evaluate.classifiers.report import MODELS, gap_table, write_classification_report
from erase.methods import get_method
from erase.runs.state import (
    cleared_if_broken,
    refuse_another_run,
    run_digest,
    state_folder,
    versions,
    with_checkpoints,
)
from erase.support.files import check_writable, replaced_folder
from erase.tasks.classification.datasets import Data, build_classifier, load_data
from erase.tasks.classification.fit import FitConfig, fit, outputs_of
from erase.tasks.classification.forget_sets import (
    Tail,
    Unit,
    chooser,
    forget_indices,
    losses_of,
    worst_case,
)
from erase.tasks.classification.task import ClassificationTask, ClassificationTaskConfig

RETRAIN_SEED, SHADOW_SEED = 1_000, 100_000
OUTPUT_FILES = (*FILES, *REPORT_FILES)


@dataclass(frozen=True)
class ClassifierConfig:
    """A data set and the classifier that learnt it.

    Args:
        data: digits, fashion_mnist, cifar10, cifar100, svhn, tiny_imagenet or folder.
        root: the folder that holds the data set's files.
        side: what pictures of data "folder" are resized and cropped to, in pixels.
        download: whether torchvision may fetch them.
        model: a torchvision model's name.
        weights: a safetensors file with its weights; if there is none, the model is trained, and
            they are written there.
        fit: how the model was trained; Retrain repeats it.
        seed: of the model's weights and the order of its training data.
    """

    data: str = "digits"
    root: str = "data"
    side: int = 64
    download: bool = False
    model: str = "resnet18"
    weights: str = ""
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0


@dataclass(frozen=True)
class ClassificationRun:
    """Everything one run depends on.

    forget: "class:3", "random:0.1" (a share), or a JSON file of indices. method_config: the
    dataclass that `method` registered, its defaults if None. shadows: models of either history that
    U-LiRA trains; 0 leaves it out.
    """

    classifier: ClassifierConfig
    forget: str
    method: str = "salun"
    method_config: Any = None
    task: ClassificationTaskConfig = field(default_factory=ClassificationTaskConfig)
    learning_rate: float = 1e-3
    seed: int = 0
    shadows: int = 0


def classify(run: ClassificationRun, output: str | Path) -> dict[str, Any]:
    """Unlearn, retrain for comparison, measure, and write `output`; the report.

    Raises ValueError on bad input, before any work.
    """
    output, method = Path(output).resolve(), get_method(run.method)
    if run.shadows == 1:
        raise ValueError("shadows is 1; U-LiRA needs at least 2, or 0 to leave it out.")
    if run.shadows and Accelerator().num_processes > 1:
        raise ValueError("Shadows are trained by one process; launch one, or leave them out.")
    check_writable(output, OUTPUT_FILES)
    _check_weights(run.classifier)
    data = data_of(run.classifier)
    forget = forget_indices(run.forget, data, run.seed)
    original = load_or_train(run.classifier, data)
    task = build_task(run, original, data, forget)
    digest = run_digest(run, task)
    refuse_another_run(output, digest)
    options = run.method_config or method.config()
    state = state_folder(options, output, digest)
    started = time.perf_counter()
    with cleared_if_broken(state):
        erasure = method(task, with_checkpoints(options, state))
    seconds = round(time.perf_counter() - started, 1)
    if not Accelerator().is_main_process:
        return {}
    models = dict(zip(MODELS, three_models(task, erasure), strict=True))
    shadows = _shadows(run, data, task, options) if run.shadows else None
    report = _report(run, task, data, models, seconds, shadows)
    erasure.recipe |= _recipe(run, options, erasure, digest, report)
    _write(report, models, data, task, erasure, output)
    shutil.rmtree(state, ignore_errors=True)
    return report


def three_models(
    task: ClassificationTask, erasure: Erasure
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The original, one retrained without the forget set, and the unlearned model."""
    original = task.components["model"]
    unlearned = copy.deepcopy(original)
    erasure.apply({"model": unlearned})
    return original, retrained(task), unlearned


def retrained(task: ClassificationTask) -> nn.Module:
    """A model of another seed than any method's, trained by the recipe without the forget set."""
    seed = task.seed + RETRAIN_SEED
    fresh = task.untrained(seed).components["model"]
    return fit(fresh, task.subset(task.retain), task.recipe, seed)


def _report(
    run: ClassificationRun,
    task: ClassificationTask,
    data: Data,
    models: dict[str, nn.Module],
    seconds: float,
    shadows: Shadows | None,
) -> dict[str, Any]:
    split = Split(data.train, task.forget, task.retain, data.test)
    return gap_report(*models.values(), split, seconds, shadows) | {
        "request": f"{run.forget} of {run.classifier.data}",
        "method": run.method,
        "protocol": {
            "model": run.classifier.model,
            "seed": run.seed,
            "forget set": task.fingerprints()["forget set"],
            "Retrain": f"same recipe, seed {run.seed + RETRAIN_SEED}",
        },
    }


def _shadows(run: ClassificationRun, data: Data, task: ClassificationTask, options: Any) -> Shadows:
    """What `run.shadows` whole histories from other seeds say of the forget set."""
    forgotten = task.subset(task.forget)

    def shadow(seed: int) -> tuple[Tensor, Tensor]:
        other = replace(run.classifier, seed=seed, weights="")
        again = replace(run, classifier=other, seed=seed)
        its = build_task(again, load_or_train(other, data), data, task.forget)
        erasure = get_method(run.method)(its, with_checkpoints(options, None))
        _, oracle, unlearned = three_models(its, erasure)
        return tuple(scaled_confidence(outputs_of(m, forgotten)) for m in (unlearned, oracle))

    first = SHADOW_SEED + run.seed
    pairs = map(shadow, range(first, first + run.shadows))
    return Shadows(*(torch.stack(part) for part in zip(*pairs, strict=True)))


def _write(
    report: dict[str, Any],
    models: dict[str, nn.Module],
    data: Data,
    task: ClassificationTask,
    erasure: Erasure,
    output: Path,
) -> None:
    rows = [task.forget[0], task.retain[0], task.retain[-1]]
    pictures, labels = zip(*(data.train[row] for row in rows), strict=True)
    examples = torch.stack(pictures), torch.tensor([int(label) for label in labels])
    layers = erasure.recipe.get("mask", {}).get("layers")
    with replaced_folder(output, OUTPUT_FILES) as partial:
        erasure.write(partial)
        write_classification_report(report, models, examples, partial, layers)


def data_of(config: ClassifierConfig) -> Data:
    """The data set that a config names."""
    return load_data(config.data, config.root, config.download, config.side)


def _check_weights(config: ClassifierConfig) -> None:
    folder = Path(config.weights).parent
    if not folder.is_dir():
        raise ValueError(f"The folder {folder} of the classifier's weights is not there; make it.")


def load_or_train(config: ClassifierConfig, data: Data) -> nn.Module:
    """The classifier with its weights, read, or trained and written."""
    path = Path(config.weights) if config.weights else None
    torch.manual_seed(config.seed)
    model = build_classifier(config.model, data)
    if path and path.is_file():
        try:
            load_model(model, path)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not hold the weights of a {config.model} ({error}); name others."
            ) from error
        return model.eval()
    fit(model, data.train, config.fit, config.seed)
    if path:
        partial = path.with_name(f".{path.name}.partial")
        save_model(model, str(partial))
        partial.rename(path)
    return model


def build_task(
    run: ClassificationRun, model: nn.Module, data: Data, forget: Sequence[int]
) -> ClassificationTask:
    """The task of a run."""
    return ClassificationTask(
        model, data.train, forget, data.classes, run.task, run.seed, run.learning_rate,
        build=lambda: build_classifier(run.classifier.model, data), recipe=run.classifier.fit,
    )  # fmt: skip


def choose_forget_set(
    run: ClassificationRun, count: int, tail: Tail, rounds: int, unit: Unit = "samples"
) -> list[int]:
    """The `count` training samples (or whole classes) of lowest or highest loss in the original.

    With `rounds` above 0, lowest in sum with as many models that `run.method` unlearned of the sets
    so far. Raises ValueError on bad input, before any work.
    """
    if rounds and tail == "highest":
        raise ValueError("Rounds look for the lowest losses; leave out rounds, or tail highest.")
    _check_weights(run.classifier)
    data = data_of(run.classifier)
    labels = torch.tensor([int(label) for _, label in data.train])
    choose = chooser(labels, count, tail, unit)
    original = load_or_train(run.classifier, data)
    method = get_method(run.method)
    options = with_checkpoints(run.method_config or method.config(), None)

    def unlearn(indices: Sequence[int]) -> nn.Module:
        erasure = method(build_task(run, copy.deepcopy(original), data, indices), options)
        unlearned = copy.deepcopy(original)
        erasure.apply({"model": unlearned})
        return unlearned

    losses = losses_of(original, data.train)
    return worst_case(losses, unlearn, data.train, choose, rounds)


def _recipe(
    run: ClassificationRun, options: Any, erasure: Erasure, digest: str, report: dict[str, Any]
) -> dict[str, Any]:
    model = f"{run.classifier.model} on {run.classifier.data}"
    return {
        "run": digest,
        "base": erasure.recipe["base"] | {"model": model, "classifier": asdict(run.classifier)},
        "request": {"concepts": [report["request"]], "seed": run.seed},
        "config": asdict(options),
        "versions": versions(),
        "report": {"table": gap_table(report)},
    }
