import copy
from pathlib import Path

import pytest
import torch
from hosts import CATALOGUE, build_digits_task, digits
from observation import prompt_losses, worst_concepts
from PIL import Image

from erase.methods import get_method
from erase.prompts.request import EraseRequest, expand
from erase.runs.calibrate import CalibrationRun, calibrated
from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
from erase.support.progress import on_progress
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.forget_sets import (
    chooser,
    losses_of,
    read_indices,
    select,
    worst_case,
    worst_classes,
    write_indices,
)
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig


def test_the_selection_minimises_the_sum_of_losses():
    losses = torch.rand(40)
    assert losses[select(losses, 7)].sum() == losses.sort().values[:7].sum()
    assert losses[select(losses, 7, "highest")].min() >= losses.sort().values[-7]


def test_a_balanced_selection_takes_the_same_of_every_class():
    losses, classes = torch.rand(40), torch.arange(40) % 4
    chosen = select(losses, 12, classes=classes)
    assert classes[chosen].bincount().tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("count", [0, 40])
def test_both_sets_must_keep_samples(count):
    with pytest.raises(ValueError, match="leave something"):
        select(torch.rand(40), count)


def test_the_worst_case_is_what_the_models_seen_fit_best_on_average(trained):
    data, seen = digits(), []

    def unlearn(indices):
        task = build_digits_task(trained, forget=indices, learning_rate=1e-3)
        unlearned = copy.deepcopy(trained)
        get_method("finetune")(task).apply({"model": unlearned})
        seen.append((list(indices), losses_of(unlearned, data)))
        return unlearned

    original = losses_of(trained, data)
    chosen = worst_case(original, unlearn, data, chooser(data.tensors[1], 100), rounds=3)
    assert seen[0][0] == select(original, 100) != chosen
    assert len(seen) == 3
    assert chosen == select(sum((losses for _, losses in seen), original), 100)


def test_classes_are_ranked_by_mean_loss():
    losses, classes = torch.tensor([3.0, 1.0, 2.0, 0.5]), torch.tensor([0, 1, 0, 1])
    assert worst_classes(losses, classes, 2) == [1, 0]


def test_whole_classes_are_chosen_by_their_mean_loss():
    losses, classes = torch.tensor([3.0, 1.0, 2.0, 0.5]), torch.tensor([0, 1, 0, 1])
    assert chooser(classes, 1, unit="classes")(losses) == [1, 3]
    with pytest.raises(ValueError, match="leave some to both"):
        chooser(classes, 2, unit="classes")
    with pytest.raises(ValueError, match="lowest loss"):
        chooser(classes, 1, "highest", "classes")


def test_indices_are_written_and_read(tmp_path):
    write_indices([3, 5], tmp_path / "forget.json")
    assert read_indices(tmp_path / "forget.json") == [3, 5]
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="no list of indices"):
        read_indices(tmp_path / "other.json")


def test_prompts_and_concepts_of_a_diffusion_task_are_ranked(tiny_pipeline):
    prompts = expand(EraseRequest(["ghost", "pizza"]), CATALOGUE)
    config = DiffusionTaskConfig(forget_pictures=8, generation_steps=2, batch_size=4)
    task = DiffusionTask(tiny_pipeline, prompts, CATALOGUE.sampling, config)
    texts, losses = prompt_losses(task, passes=2)
    assert len(texts) == len(losses) == len(set(texts)) > 2
    assert (losses > 0).all()
    chosen = select(losses, 2)
    assert losses[chosen].max() <= losses.sort().values[1]
    order = worst_concepts(task, 2, passes=2)
    named = {p.text: p.group for p in prompts.forget}
    means = [losses[[named[text] == name for text in texts]].mean() for name in order]
    assert set(order) == {"ghost", "pizza"}
    assert means[0] <= means[1]


def tiny_imagenet(root: Path) -> Path:
    """Two classes of a picture each, one of them in the validation set; that set's list."""
    folder = root / "tiny-imagenet-200"
    for synset, colour in (("n02", "red"), ("n01", "blue")):
        pictures = folder / "train" / synset / "images"
        pictures.mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(pictures / f"{synset}_0.JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    Image.new("L", (64, 64), 7).save(folder / "val" / "images" / "val_0.JPEG")
    listed = folder / "val" / "val_annotations.txt"
    listed.write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    return listed


def test_tiny_imagenet_is_read_as_it_is_handed_out(tmp_path):
    tiny_imagenet(tmp_path)
    data = load_data("tiny_imagenet", tmp_path)
    assert [label for _, label in data.train] == [0, 1]
    picture, label = data.test[0]
    assert picture.shape == (3, 64, 64)
    assert label == 1
    assert len(data.test) == 1


ODD_ROWS = ["val_0.JPEG", "val_0.JPEG\tn03", "val_1.JPEG\tn02", "\tn02", "n02", "\xe9\tn02"]


@pytest.mark.parametrize("row", ODD_ROWS, ids=repr)
def test_a_row_of_tiny_imagenets_list_is_a_picture_and_its_class(tmp_path, row):
    tiny_imagenet(tmp_path).write_text(f"{row}\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"val_annotations.*; mend it\.$|the class n03.*; add it"):
        load_data("tiny_imagenet", tmp_path)


def test_a_test_set_without_a_retained_class_is_refused_untrained(tmp_path):
    tiny_imagenet(tmp_path)
    trained, known = [], ClassifierConfig("tiny_imagenet", str(tmp_path))
    (tmp_path / "most.json").write_text(str([*range(2, len(digits()))]))  # all but a 0 and a 1
    half = CalibrationRun(ClassifierConfig(), str(tmp_path / "most.json"), share=0.5)
    for asked in (
        lambda: classify(ClassificationRun(known, "class:n02"), tmp_path / "out"),
        lambda: calibrated(half),
    ):
        refused = pytest.raises(ValueError, match=r"None of the 1 samples .*; add some")
        with refused, on_progress(lambda *told: trained.append(told)):
            asked()
    assert not trained
