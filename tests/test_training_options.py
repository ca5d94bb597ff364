import dataclasses
import importlib.util
import os

import pytest
import torch
from hosts import build_digits_task, build_tiny_pipeline, build_tiny_task
from PIL import Image
from safetensors.torch import load_file
from test_salun import BRISK, same_bytes

from erase.methods import methods
from erase.methods.salun import SalUnConfig, salun
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.checkpoint import checkpoints, checkpoints_in
from erase.training.config import TrainingConfig
from erase.training.loop import finetune, step_seed
from erase.training.watch import require_runnable

PLAIN = TrainingConfig(2, 1e-2)


def tiny():
    return build_tiny_task(build_tiny_pipeline())


def trained(training, step_loss=None):
    task = tiny()

    def loss(forget, retain, progress):
        return task.loss(retain) - 0.1 * task.loss(forget)

    return finetune(task, step_loss(task) if step_loss else loss, training)


def furthest(one, other) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n].dense() - other[n].dense()).abs().max()) for n in one)


def test_accumulated_batches_make_the_step_of_their_mean_loss():
    def of_both(task):
        def loss(forget, retain, progress):
            seeds = (step_seed(task.seed, part) for part in range(2))
            parts = [
                task.loss(next(iter(task.retain_batches(seed + 1))))
                - 0.1 * task.loss(next(iter(task.forget_batches(seed))))
                for seed in seeds
            ]
            return sum(parts) / 2

        return loss

    one_step = TrainingConfig(1, 1e-2)
    accumulated = trained(dataclasses.replace(one_step, gradient_accumulation_steps=2))
    assert furthest(accumulated, trained(one_step, of_both)) < 1e-4
    assert furthest(accumulated, trained(one_step)) > 1e-3


def test_gradient_checkpointing_changes_nothing_but_memory():
    task = tiny()
    lean = trained(dataclasses.replace(PLAIN, gradient_checkpointing=True))
    assert furthest(lean, trained(PLAIN)) < 1e-4
    assert not task.components["unet"].is_gradient_checkpointing


def test_the_average_of_the_weights_is_what_stays():
    """With a decay of 0 that is the last weights, with more it lies nearer the first."""
    last = trained(dataclasses.replace(PLAIN, use_ema=True, ema_decay=0.0))
    assert same_bytes_of(last, trained(PLAIN))
    slow = trained(dataclasses.replace(PLAIN, use_ema=True, ema_decay=0.9))
    size = sum(float(delta.dense().abs().sum()) for delta in slow.values())
    assert 0 < size < sum(float(delta.dense().abs().sum()) for delta in last.values())


def same_bytes_of(one, other) -> bool:
    return one.keys() == other.keys() and furthest(one, other) == 0


RESUMED = {
    "averaged": {"use_ema": True, "ema_decay": 0.5},
    "by sgd": {"optimizer": "sgd"},
}
if importlib.util.find_spec("bitsandbytes"):
    RESUMED["in 8 bits"] = {"use_8bit_adam": True}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_other_trainings_resume_to_the_same_bytes_too(options, tmp_path, monkeypatch):
    training = dataclasses.replace(BRISK, **options)
    whole = salun(tiny(), SalUnConfig(training=training))
    task, steps = tiny(), []
    plain = type(task).redirected_loss

    def dies(self, forget, teacher):
        steps.append(0)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return plain(self, forget, teacher)

    with monkeypatch.context() as patch:
        patch.setattr(type(task), "redirected_loss", dies)
        with pytest.raises(KeyboardInterrupt), checkpoints_in(tmp_path):
            salun(task, SalUnConfig(training=training))
    assert checkpoints(tmp_path)[-1].name == "checkpoint-2"
    with checkpoints_in(tmp_path):
        assert same_bytes(salun(tiny(), SalUnConfig(training=training)), whole)


def test_as_many_checkpoints_are_kept_as_asked_and_left_alone_if_asked(tmp_path):
    kept = dataclasses.replace(BRISK, checkpointing_steps=1, checkpoints_total_limit=2)
    with checkpoints_in(tmp_path):
        first = salun(tiny(), SalUnConfig(training=kept))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-3", "checkpoint-4"]
    anew = dataclasses.replace(kept, resume_from_checkpoint="no", learning_rate=2e-2)
    with checkpoints_in(tmp_path):
        assert not same_bytes(salun(tiny(), SalUnConfig(training=anew)), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "state.json").write_bytes(b""),
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        lambda folder: os.truncate(folder / "parameters.safetensors", 500),
    ],
)
def test_training_goes_on_from_before_what_is_damaged(damage, tmp_path, caplog):
    kept = dataclasses.replace(BRISK, checkpointing_steps=1, checkpoints_total_limit=2)
    with checkpoints_in(tmp_path):
        whole = salun(tiny(), SalUnConfig(training=kept))
        damage(tmp_path / "checkpoint-4")
        assert same_bytes(salun(tiny(), SalUnConfig(training=kept)), whole)
    assert "checkpoint-4 is damaged" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_losses_and_pictures_are_kept_while_training(tmp_path):
    watched = dataclasses.replace(
        PLAIN, report_to="tensorboard", validation_steps=2, logging_dir=str(tmp_path)
    )
    assert same_bytes_of(trained(watched), trained(PLAIN))
    with Image.open(tmp_path / "validation-2.png") as picture:
        assert picture.size == (4 * 18 + 2, 2 * 18 + 2)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_what_cannot_be_is_one_sentence():
    task, method = tiny(), methods()["salun"]
    if importlib.util.find_spec("bitsandbytes") is None:
        lean = SalUnConfig(training=dataclasses.replace(PLAIN, use_8bit_adam=True))
        with pytest.raises(ValueError, match=r"use_8bit_adam needs bitsandbytes.*install it"):
            method(task, lean)
    with pytest.raises(ValueError, match="ema_decay is 1"):
        TrainingConfig(ema_decay=1.0)
    with pytest.raises(ValueError, match="lr_scheduler is 'cosine'; choose one of"):
        TrainingConfig(lr_scheduler="cosine")
    digits = build_digits_task(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="draws nothing"):
        method(digits, SalUnConfig(training=dataclasses.replace(PLAIN, validation_steps=1)))


@pytest.mark.parametrize("watching", [{"report_to": "tensorboard"}, {"validation_steps": 1}])
def test_a_folder_that_holds_no_files_is_refused_before_training(watching, tmp_path):
    (tmp_path / "logs").write_text("a file")
    inside = str(tmp_path / "logs" / "of-this-run")
    with pytest.raises(ValueError, match=r"logs.of-this-run cannot be written .*another folder"):
        require_runnable(dataclasses.replace(PLAIN, logging_dir=inside, **watching), DiffusionTask)


def test_a_launch_in_another_precision_is_not_ignored(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"asks for mixed_precision bf16.*for no, which counts"):
        require_runnable(PLAIN, DiffusionTask)
    require_runnable(dataclasses.replace(PLAIN, mixed_precision="bf16"), DiffusionTask)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    require_runnable(dataclasses.replace(PLAIN, mixed_precision="bf16"), DiffusionTask)


def test_a_selection_of_nothing_is_not_everything():
    task = tiny()
    with pytest.raises(ValueError, match="No tensor is to be trained"):
        finetune(task, lambda forget, retain, progress: task.loss(retain), PLAIN, parameters={})


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(tmp_path):
    averaged = dataclasses.replace(BRISK, use_ema=True)
    with checkpoints_in(tmp_path):
        salun(tiny(), SalUnConfig(training=averaged))
    newest, names = checkpoints(tmp_path)[-1], tiny().parameters().keys()
    held = {path.stem: load_file(path) for path in newest.glob("*.safetensors")}
    assert held.keys() == {"parameters", "average", "optimizer"}
    assert held["parameters"].keys() == held["average"].keys() == names
    slots = {"step", "exp_avg", "exp_avg_sq"}
    assert held["optimizer"].keys() == {f"{i}.{slot}" for i in range(len(names)) for slot in slots}


def test_starting_anew_spares_what_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    anew = dataclasses.replace(BRISK, resume_from_checkpoint="no")
    with checkpoints_in(tmp_path):
        salun(tiny(), SalUnConfig(training=anew))
    assert (tmp_path / "thesis.txt").read_text() == "mine"
