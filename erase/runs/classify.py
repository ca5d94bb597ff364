"""One call from a data set, a classifier and a forget set to a measured Erasure in a folder."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from erase.core.seeds import folded
from erase.erasure.erasure import FILES, Erasure
from erase.evaluate.classifiers.gaps import Reference, Shadows, Split, logit_scaled
from erase.evaluate.classifiers.report import REPORT_FILES, write_classification_report
from erase.evaluate.reports import GapReport
from erase.evaluate.tables import gap_table
from erase.methods import get_method
from erase.prompts.seeds import RETRAIN_SEED, SHADOW_SEED
from erase.runs.state import carry_out, note_run, options_of, require_method, run_digest
from erase.support.config import Config, NotNegative, Positive
from erase.support.distributed import DeviceConfig, launched, own_device
from erase.support.errors import refused
from erase.support.files import check_file_writable, replaced_file
from erase.tasks.classification.datasets import Data, build_classifier, load_data
from erase.tasks.classification.fit import FitConfig, fit, outputs_of, size_of
from erase.tasks.classification.forget_sets import forget_indices, told
from erase.tasks.classification.task import ClassificationTask, ClassificationTaskConfig

OUTPUT_FILES = (*FILES, *REPORT_FILES)


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """A data set and the classifier that learnt it.

    Args:
        data: digits, fashion_mnist, cifar10, cifar100, svhn, tiny_imagenet or folder.
        root: the folder that holds the data set's files.
        side: what pictures of data "folder" are resized and cropped to, in pixels.
        download: whether torchvision may fetch them.
        model: one of torchvision's classifiers, by name.
        weights: a safetensors file with its weights; if there is none, the model is trained, and
            they are written there.
        fit: how the model was trained; Retrain repeats it.
        seed: of the model's weights and the order of its training data.
    """

    data: str = "digits"
    root: str = "data"
    side: Positive[int] = 64
    download: bool = False
    model: str = "resnet18"
    weights: str = ""
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0


@dataclass(frozen=True)
class ClassifierRun(DeviceConfig):
    """A classifier, what it is to forget, and by which method.

    Args:
        classifier: the original and what it learnt.
        forget: "class:3" or "class:dog", "random:0.1" (a share), or a JSON or .npy file of indices
            or a mask.
        method: one of those that `erase methods` lists.
        method_config: the dataclass that the method registered, its defaults if None.
        task: which weights may change, and how many samples a step sees.
        learning_rate: of methods that train, unless their own config names one.
        seed: of the method, and of a random forget set.
    """

    classifier: ClassifierConfig
    forget: str
    method: str = "salun"
    method_config: Any = None
    task: ClassificationTaskConfig = field(default_factory=ClassificationTaskConfig)
    learning_rate: Positive[float] = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_method(self, ClassificationTask)


@dataclass(frozen=True)
class ClassificationRun(ClassifierRun):
    """Everything one run depends on.

    Args:
        shadows: models of either history that U-LiRA trains; 0 leaves it out.
    """

    shadows: NotNegative[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shadows == 1:
            raise ValueError("shadows is 1; U-LiRA needs at least 2, or 0 to leave it out.")


@dataclass(frozen=True)
class OpenedClassifier:
    """A data set, and the task of the original that learnt it.

    digest: what tells the run from others.
    """

    data: Data
    task: ClassificationTask
    digest: str


def classify(run: ClassificationRun, output: str | Path) -> GapReport | None:
    """Unlearn, retrain for comparison, measure, and write `output`; the report.

    Of several processes the first alone returns it. Raises ValueError on bad input, before any
    work.
    """
    method, options = get_method(run.method), options_of(run, ClassificationTask)

    def open_() -> OpenedClassifier:
        if run.shadows and launched().num_processes > 1:
            raise ValueError("Shadows are trained by one process; launch one, or leave them out.")
        data = data_of(run.classifier)
        forget = forget_indices(run.forget, data, run.seed)
        retain = sorted({*range(size_of(data.train))} - {*forget})
        Split(data.train, forget, retain, data.test)  # refused before anything is trained
        task = build_task(run, load_or_train(run.classifier, data, run.device), data, forget)
        return OpenedClassifier(data, task, run_digest(run, task))

    def work(opened: OpenedClassifier) -> tuple[Erasure, float]:
        started = time.perf_counter()
        erasure = method(opened.task, options)
        return erasure, round(time.perf_counter() - started, 1)

    def write(opened: OpenedClassifier, done: tuple[Erasure, float], folder: Path) -> GapReport:
        (erasure, seconds), known = done, run.classifier
        models = three_models(opened.task, erasure)
        shadows = _shadows(run, opened, options) if run.shadows else None
        report = _report(run, opened, models, seconds, shadows)
        request = {"concepts": [report.request], "seed": run.seed}
        base = {"model": f"{known.model} on {known.data}", "classifier": asdict(known)}
        note_run(erasure, opened.digest, options, request, **base)
        erasure.recipe["report"] = {"table": gap_table(report)}
        erasure.write(folder)
        layers = erasure.facts.layers
        write_classification_report(report, models, _examples(opened), folder, layers)
        return report

    return carry_out(output, OUTPUT_FILES, open_, work, write, attrgetter("digest"))


def three_models(task: ClassificationTask, erasure: Erasure) -> dict[str, nn.Module]:
    """The original, one retrained without the forget set, and the unlearned model, by name."""
    original = task.components["model"]
    unlearned = copy.deepcopy(original)
    erasure.apply({"model": unlearned})
    return {"original": original, "retrained": retrained(task), "unlearned": unlearned}


def retrained(task: ClassificationTask) -> nn.Module:
    """A model of another seed than any method's, trained by the recipe without the forget set."""
    seed = task.seed + RETRAIN_SEED
    fresh = task.untrained(seed).components["model"]
    return fit(fresh, task.subset(task.retain), task.recipe, seed)


def _report(
    run: ClassificationRun,
    opened: OpenedClassifier,
    models: Mapping[str, nn.Module],
    seconds: float,
    shadows: Shadows | None,
) -> GapReport:
    data, task = opened.data, opened.task
    split = Split(data.train, task.forget, task.retain, data.test)
    reference = Reference(models["original"], models["retrained"], split)
    return replace(
        reference.report(models["unlearned"], seconds, shadows),
        request=f"{told(run.forget, data)} of {run.classifier.data}",
        method=run.method,
        protocol={
            "model": run.classifier.model,
            "seed": run.seed,
            "forget set": task.fingerprints()["forget set"],
            "Retrain": f"same recipe, seed {run.seed + RETRAIN_SEED}",
        },
    )


def _shadows(run: ClassificationRun, opened: OpenedClassifier, options: Any) -> Shadows:
    """What `run.shadows` whole histories from other seeds say of the forget set."""
    data, forget = opened.data, opened.task.forget
    forgotten = opened.task.subset(forget)

    def shadow(seed: int) -> tuple[Tensor, Tensor]:
        other = replace(run.classifier, seed=seed, weights="")
        again = replace(run, classifier=other, seed=seed)
        its = build_task(again, load_or_train(other, data, run.device), data, forget)
        erasure = get_method(run.method)(its, options)
        models = three_models(its, erasure)
        ours, theirs = (outputs_of(models[of], forgotten) for of in ("unlearned", "retrained"))
        return logit_scaled(ours), logit_scaled(theirs)

    first = SHADOW_SEED + run.seed
    pairs = map(shadow, range(first, first + run.shadows))
    return Shadows(*(torch.stack(part) for part in zip(*pairs, strict=True)))


def _examples(opened: OpenedClassifier) -> tuple[Tensor, Tensor]:
    """A forgotten sample and two retained ones, with their labels."""
    task = opened.task
    rows = [task.forget[0], task.retain[0], task.retain[-1]]
    pictures, labels = zip(*(opened.data.train[row] for row in rows), strict=True)
    return torch.stack(pictures), torch.tensor([int(label) for label in labels])


def data_of(config: ClassifierConfig) -> Data:
    """The data set that a config names; ValueError if the model's weights could not be written."""
    path = Path(config.weights)
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} of the classifier's weights is not there; make "
                         "it.")  # fmt: skip
    if config.weights and not path.is_file():
        check_file_writable(path)
    return load_data(config.data, config.root, config.download, config.side)


def load_or_train(config: ClassifierConfig, data: Data, device: str = "cpu") -> nn.Module:
    """The classifier on a device with its weights, read, or trained and written."""
    path = Path(config.weights) if config.weights else None
    with torch.random.fork_rng():
        torch.manual_seed(folded(config.seed))
        model = build_classifier(config.model, data)
    if path and path.is_file():
        what = f"{path} does not hold the weights of a {config.model}"
        with refused(what, "name others"):
            load_weights(model, path)
        return model.to(own_device(device)).eval()
    fit(model.to(own_device(device)), data.train, config.fit, config.seed)
    if path and launched().is_main_process:
        with replaced_file(path) as partial:
            save_weights(model, str(partial))
    return model


def build_task(
    run: ClassifierRun, model: nn.Module, data: Data, forget: Sequence[int]
) -> ClassificationTask:
    """The task of a run."""
    return ClassificationTask(
        model, data.train, forget, data.classes, run.task, run.seed, run.learning_rate,
        build=lambda: build_classifier(run.classifier.model, data), recipe=run.classifier.fit,
    )  # fmt: skip
