import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from erase.methods import methods
from erase.methods.gradient_ascent import GradientAscentConfig
from erase.methods.projection import ProjectionConfig
from erase.tasks.classification import ClassificationTask, ClassificationTaskConfig
from erase.training import TrainingConfig

FORGOTTEN = 3


def digits() -> TensorDataset:
    data = load_digits()
    pictures = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return TensorDataset(pictures, torch.tensor(data.target))


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model, (pictures, labels) = build_model(), digits().tensors
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def class_indices(label: int) -> list[int]:
    return (digits().tensors[1] == label).nonzero().flatten().tolist()


def build_task(model: nn.Module, **changes) -> ClassificationTask:
    arguments = {"dataset": digits(), "forget": class_indices(FORGOTTEN), "classes": 10}
    return ClassificationTask(copy.deepcopy(model), **arguments | changes)


def accuracies(task: ClassificationTask) -> tuple[float, float]:
    pictures, labels = digits().tensors
    with torch.no_grad():
        right = task.predict(pictures).argmax(1) == labels
    return tuple(float(right[indices].float().mean()) for indices in (task.forget, task.retain))


SETTINGS = {
    "gradient_ascent": GradientAscentConfig(TrainingConfig(steps=20, learning_rate=2e-3)),
    "projection": ProjectionConfig(space="scaled", rank=128),
}
# Finetuning hopes to forget by not rehearsing, which takes longer than a test may.
SERVING = [
    name for name, method in methods().items() if method.task is object and name != "finetune"
]


@pytest.mark.parametrize("name", SERVING)
def test_every_method_forgets_more_than_the_original_and_retains(trained, name):
    task = build_task(trained, learning_rate=1e-2)
    before = accuracies(task)
    erasure = methods()[name](task, SETTINGS.get(name))
    with erasure.apply(task.components):
        forget, retain = accuracies(task)
    assert forget < before[0]
    assert retain > 0.3
    assert accuracies(task) == before


def test_wrong_labels_are_never_the_true_ones(trained):
    task = build_task(trained, config=ClassificationTaskConfig(batch_size=50))
    batches = list(task.forget_batches(0))
    assert sum(len(batch.labels) for batch in batches) == len(task.forget)
    wrong = torch.cat([batch.wrong_labels for batch in batches])
    assert (wrong != FORGOTTEN).all()
    assert set(wrong.tolist()) == set(range(10)) - {FORGOTTEN}


def test_running_statistics_stay_as_they_are(trained):
    task = build_task(trained, learning_rate=1e-2)
    before = {name: buffer.clone() for name, buffer in task.components["model"].named_buffers()}
    methods()["salun"](task)
    for name, buffer in task.components["model"].named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("forget", "reason"), [([], "forget set is empty"), ([99_999], "beyond the 1797")]
)
def test_forget_sets_that_do_not_fit_are_refused(trained, forget, reason):
    with pytest.raises(ValueError, match=reason):
        build_task(trained, forget=forget)


def test_a_classifier_is_refused_by_methods_of_prompts(trained):
    with pytest.raises(ValueError, match="needs a DiffusionTask, not a ClassificationTask"):
        methods()["uce"](build_task(trained))
