from pathlib import Path

import numpy as np
import pytest
import torch
from hosts import build_digits_task, digits
from PIL import Image
from torch.utils.data import Dataset

from erase.methods import methods
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.forget_sets import forget_indices, told
from erase.tasks.classification.rows import as_indices
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainedConfig, TrainingConfig


def folders(root: Path, names: list[str]) -> Path:
    for part in ("train", "val"):
        for name in (*names, ".ipynb_checkpoints"):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / part / name / "0.png")
            (root / part / name / "._0.png").write_bytes(b"a Mac's note")
        (root / part / ".DS_Store").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("names", "asked", "folder"),
    [
        ([str(i) for i in range(12)], "3", "3"),
        ([str(i) for i in range(12)], "10", "10"),
        ([str(i) for i in range(1, 13)], "12", "12"),
        (["00", "01", "02"], "1", "01"),
        (["bird", "cat", "dog"], "0", "bird"),
        (["bird", "cat", "dog"], "dog", "dog"),
        (["bird", "cat", "Hot  dog"], "hot dog", "Hot  dog"),
        (["e\u0301te\u0301", "hiver"], "été", "e\u0301te\u0301"),
    ],
)
def test_a_class_is_what_the_user_calls_it(tmp_path, names, asked, folder):
    data = load_data("folder", folders(tmp_path, names), side=8)
    assert data.classes == len(data.names) == len(names)
    chosen = forget_indices(f"class:{asked}", data, 0)
    assert {Path(data.train.samples[i][0]).parent.name for i in chosen} == {folder}
    assert told(f"class:{asked}", data).endswith(folder if asked == folder else f"({folder})")


@pytest.mark.parametrize(
    ("names", "asked"),
    [(["1", "2", "3"], "0"), (["1", "2", "3"], "4"), (["a", "b"], "2"), (["a", "b"], "c"),
     (["a", "b"], "1.0"), (["a", "A"], "\uff41"), (["a", "b"], "")],
)  # fmt: skip
def test_a_class_that_is_not_there_is_refused_by_name(tmp_path, names, asked):
    data = load_data("folder", folders(tmp_path, names), side=8)
    with pytest.raises(ValueError, match=rf"'{asked}' holds 0 of \d samples; write class:"):
        forget_indices(f"class:{asked}", data, 0)


@pytest.mark.parametrize(
    "given",
    [
        [1, 3], (3, 1), {1, 3}, [3, 1, 1], range(1, 4, 2), np.array([1, 3]), torch.tensor([3, 1]),
        [np.int64(1), torch.tensor(3)], ["1", "3"], np.array(["1", "3"]),
        [False, True, False, True], np.array([0, 1, 0, 1], bool), torch.tensor([0, 1, 0, 1]) > 0,
    ],
    ids=str,
)  # fmt: skip
def test_a_forget_set_is_indices_or_a_mask(given):
    assert as_indices(given, 4) == [1, 3]


@pytest.mark.parametrize(
    "given",
    [
        [0, 1, 0, 1], [True, False], [True, 1], [1.0], [float("nan")], ["a"], [-1], [4], "13",
        {"1": 3}, 3, None, np.array([0.0, 1.0, 0.0, 1.0]), [[1, 3]], [2**70],
    ],
    ids=str,
)  # fmt: skip
def test_anything_else_is_no_forget_set(given):
    with pytest.raises(ValueError, match=r"give|mend"):
        as_indices(given, 4)


class Made(Dataset):
    """The digits, each row made anew when it is read."""

    def __init__(self, row):
        self.row, self.digits = row, digits()

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int):
        return self.row(*self.digits[index])


ROWS = {
    "a dict": lambda x, y: {"image": x, "label": y},
    "three parts": lambda x, y: (x, y, 0),
    "a text": lambda x, y: (x, f"class {int(y)}"),
    "one of ten": lambda x, y: (x, torch.nn.functional.one_hot(y, 10).float()),
    "a float": lambda x, y: (x, float(y)),
    "a truth": lambda x, y: (x, bool(y)),
    "beyond": lambda x, y: (x, int(y) + 10),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows_that_are_no_pairs_of_inputs_and_numbers_are_refused(trained, row):
    with pytest.raises(ValueError, match=r"give \(input, label\)|say how many"):
        build_digits_task(trained, dataset=Made(row))


def test_labels_may_be_numbers_of_any_kind(trained):
    wanted = build_digits_task(trained).labels
    for kind in (int, np.int64, np.array, lambda y: np.array([y]), torch.as_tensor):
        task = build_digits_task(trained, dataset=Made(lambda x, y, kind=kind: (x, kind(int(y)))))
        assert torch.equal(task.labels, wanted)


def test_what_augmentation_draws_follows_from_the_seed(trained, tmp_path):
    def shifted(x, y):
        return x.roll(int(torch.randint(-1, 2, ())) + np.random.randint(2), -1), y

    config = TrainedConfig(training=TrainingConfig(max_train_steps=2, checkpointing_steps=1))

    def train() -> tuple[dict, dict]:
        task = build_digits_task(trained, dataset=Made(shifted))
        deltas = methods()["finetune"](task, config).deltas
        return task.describe(), {name: delta.dense() for name, delta in deltas.items()}

    with checkpoints_in(tmp_path / "state"):
        (one, first), (other, again) = train(), train()
    assert one == other
    for name, delta in train()[1].items():
        assert torch.equal(first[name], delta)
        assert torch.equal(first[name], again[name])
