import gzip

import numpy as np
import pytest
import torch
from hosts import accuracies, build_digits_task, digits
from torch.utils.data import TensorDataset

from erase.methods import methods
from erase.methods.gradient_ascent import GradientAscentConfig
from erase.methods.ssd import LFSSDConfig
from erase.tasks.classification import datasets
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.fit import one_cycle
from erase.tasks.classification.task import ClassificationTask, ClassificationTaskConfig
from erase.training.config import TrainedConfig, TrainingConfig

FORGOTTEN = 3

# Nothing holds the retain set in place here.
BRIEF = TrainingConfig(max_train_steps=20, learning_rate=2e-3)
SETTINGS = {
    "gradient_ascent": GradientAscentConfig(BRIEF),
    "boundary_expand": TrainedConfig(training=BRIEF),
    "lfssd": LFSSDConfig(selection=5),
}
SERVING = [
    name for name, method in methods().items() if method.task in (object, ClassificationTask)
]


@pytest.mark.parametrize("name", SERVING)
def test_every_method_forgets_more_than_the_original_and_retains(trained, name):
    task = build_digits_task(trained, learning_rate=1e-2)
    before = accuracies(task)
    erasure = methods()[name](task, SETTINGS.get(name))
    with erasure.apply(task.components):
        forget, retain = accuracies(task)
    assert forget < before[0]
    assert retain > 0.3
    assert accuracies(task) == before


def test_a_projected_class_is_gone_and_the_rest_stays(trained):
    task = build_digits_task(trained)
    before = accuracies(task)
    with methods()["projection"](task).apply(task.components):
        forget, retain = accuracies(task)
    assert forget < 0.01
    assert retain > before[1] - 0.015


def test_other_data_of_the_same_size_have_another_fingerprint(trained):
    pictures, labels = digits().tensors
    one = build_digits_task(trained).fingerprints()
    other = build_digits_task(trained, dataset=TensorDataset(1 - pictures, labels)).fingerprints()
    assert one["base"] == other["base"]
    assert one["forget set"] != other["forget set"]


def test_wrong_labels_are_never_the_true_ones(trained):
    task = build_digits_task(trained, config=ClassificationTaskConfig(batch_size=50))
    batches = list(task.forget_batches(0))
    assert sum(len(batch.labels) for batch in batches) == len(task.forget)
    wrong = torch.cat([batch.answers for batch in batches])
    assert (wrong != FORGOTTEN).all()
    assert set(wrong.tolist()) == set(range(10)) - {FORGOTTEN}


def test_a_model_fitted_to_the_rest_gives_the_answers_instead(trained):
    held_out = ClassificationTaskConfig(redirect="held_out", held_out_epochs=2)
    task = build_digits_task(trained, config=held_out, learning_rate=1e-2)
    batches = list(task.forget_batches(0))
    answers = torch.cat([batch.answers for batch in batches])
    assert answers.shape == (len(task.forget), 10)
    assert torch.allclose(answers.sum(1), torch.ones(len(answers)))
    assert (answers[:, FORGOTTEN] < 0.1).all()  # it never saw one
    erasure = methods()["salun"](task)
    with erasure.apply(task.components):
        assert accuracies(task)[0] < 0.1


def test_running_statistics_stay_as_they_are(trained):
    task = build_digits_task(trained, learning_rate=1e-2)
    before = {name: buffer.clone() for name, buffer in task.components["model"].named_buffers()}
    methods()["salun"](task)
    for name, buffer in task.components["model"].named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("forget", "reason"), [([], "forget set is empty"), ([99_999], "beyond the 1347")]
)
def test_forget_sets_that_do_not_fit_are_refused(trained, forget, reason):
    with pytest.raises(ValueError, match=reason):
        build_digits_task(trained, forget=forget)


def test_a_classifier_is_refused_by_methods_of_prompts(trained):
    with pytest.raises(ValueError, match="needs a DiffusionTask, not a ClassificationTask"):
        methods()["uce"](build_digits_task(trained))


def test_the_learning_rate_is_highest_where_the_config_says():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)
    schedule, rates = one_cycle(optimizer, 0.1, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) == 29  # the last of the first three tenths
    assert max(rates) == 0.1


def test_debians_fashion_mnist_is_the_one_torchvision_reads(tmp_path, monkeypatch):
    raw, packed = tmp_path / "FashionMNIST" / "raw", tmp_path / "debian"
    raw.mkdir(parents=True)
    packed.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (2, 5, 28, 28), np.uint8)
    for part, pictures in zip(("train", "t10k"), drawn, strict=True):
        shape = np.array([5, 28, 28], ">i4").tobytes()
        files = {
            f"{part}-images-idx3-ubyte": b"\0\0\x08\x03" + shape + pictures.tobytes(),
            f"{part}-labels-idx1-ubyte": b"\0\0\x08\x01" + shape[:4] + bytes([3, 1, 4, 1, 5]),
        }
        for name, content in files.items():
            (raw / name).write_bytes(content)
            (packed / f"{name}.gz").write_bytes(gzip.compress(content))
    known = load_data("fashion_mnist", tmp_path)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", packed)
    ours = load_data("fashion_mnist", tmp_path / "elsewhere")
    assert ours.names == known.names
    for name in ("train", "test"):
        for (picture, label), (theirs, number) in zip(
            getattr(ours, name), getattr(known, name), strict=True
        ):
            assert torch.equal(picture, theirs)
            assert label == number
