import copy

import pytest
import torch
from conftest import build_digits_task, digits

from erase.forget_sets import (
    chooser,
    losses_of,
    read_indices,
    select,
    worst_case,
    worst_classes,
    write_indices,
)
from erase.methods import get_method


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


def test_the_worst_case_is_the_best_fitted_of_all_that_were_unlearned(trained):
    data, seen = digits(), []

    def unlearn(indices):
        seen.append(list(indices))
        task = build_digits_task(trained, forget=indices, learning_rate=1e-3)
        unlearned = copy.deepcopy(trained)
        get_method("finetune")(task).apply({"model": unlearned})
        return unlearned

    chosen = worst_case(unlearn, data, range(100), chooser(data.tensors[1], 100), rounds=3)
    assert seen[0] == list(range(100)) != chosen
    fits = [losses_of(unlearn(indices), data)[indices].sum() for indices in list(seen)]
    assert chosen == seen[min(range(len(fits)), key=fits.__getitem__)]


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
