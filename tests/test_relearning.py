"""The term against relearning: first-order, by hand on a tiny module, and it leaves no trace."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hosts import build_digits_model, build_digits_task
from test_adversaries import mixed_batch
from test_diffusion_task import build_task
from torch import nn

from erase.methods import methods
from erase.training.config import TrainingConfig
from erase.training.relearning import relearned, withstanding

RATE = 0.25


class ByHand:
    """A task of one linear layer, relearned by descending its squared output."""

    rate = RATE

    def __init__(self, steps):
        torch.manual_seed(0)
        self.model, self.steps, self.frozen = nn.Linear(3, 2).double(), steps, {}
        self.components, self.relearning = {"model": self.model}, self

    def weights(self):
        return dict(self.model.named_parameters())

    def frozen_copy(self, trained):
        assert trained.keys() == self.weights().keys()
        return "teacher"

    def redirected_loss(self, batch, teacher):
        assert teacher == "teacher"
        return 3 * (self.model(batch) - 1).square().sum()

    def losses(self, batch):
        for _ in range(self.steps):
            yield self.model(batch).square().sum()


def moved_by_hand(weight, bias, inputs, steps):
    for _ in range(steps):
        outputs = inputs @ weight.T + bias
        slopes = 2 * outputs.T @ inputs, 2 * outputs.sum(0)
        weight, bias = (
            value - RATE * slope / slope.square().mean().sqrt()
            for value, slope in zip((weight, bias), slopes, strict=True)
        )
    return weight, bias


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_is_the_losss_here_and_where_relearning_led(steps):
    task = ByHand(steps)
    forget, retain = torch.randn(2, 4, 3, dtype=torch.float64)
    weight, bias = (value.detach().clone() for value in task.model.parameters())

    def step_loss(forget, retain, progress):
        return (task.model(forget) - 1).square().sum() + progress * task.model(retain).sum()

    def slope_by_hand(weight, bias):
        wrong = 2 * (forget @ weight.T + bias - 1)
        return wrong.T @ forget, wrong.sum(0)

    def value(weight, bias):
        return (forget @ weight.T + bias - 1).square().sum()

    loss = withstanding(task, step_loss, task.weights())(forget, retain, 0.5)
    loss.backward()
    there = moved_by_hand(weight, bias, forget, steps)
    kept = 0.5 * (retain @ weight.T + bias).sum()
    assert torch.allclose(loss, value(weight, bias) + kept + 3 * value(*there))
    here, after = slope_by_hand(weight, bias), slope_by_hand(*there)
    here = here[0] + 0.5 * retain.sum(0), here[1] + 0.5 * len(retain)
    for name, parameter in enumerate(task.model.parameters()):
        assert torch.allclose(parameter.grad, here[name] + 3 * after[name])
        assert torch.equal(parameter, (weight, bias)[name])


def test_what_an_accumulated_step_had_learnt_is_kept():
    task = ByHand(1)
    batch = torch.randn(4, 3, dtype=torch.float64)
    loss = withstanding(task, lambda f, r, p: task.model(f).sum(), task.weights())
    loss(batch, batch, 0.0).backward()
    once = task.model.weight.grad.clone()
    loss(batch, batch, 0.0).backward()
    assert torch.allclose(task.model.weight.grad, 2 * once)


def test_relearning_lowers_the_models_own_loss_and_leaves_no_trace(tiny_pipeline):
    task = build_task(tiny_pipeline, relearning=8, relearning_rate=1e-2)
    batch = mixed_batch(task)
    shown = dataclasses.replace(batch, shows=None)
    before = {name: weight.clone() for name, weight in task.relearning.weights().items()}
    assert not set(before) <= set(task.parameters())  # all of the denoiser, as an attacker would

    def error():
        with torch.no_grad():
            predicted = task.predict(shown, shown.prompts)
            return task.denoiser.errors(shown, predicted)[batch.shows].sum()

    plain = error()
    flags = {name: weight.requires_grad for name, weight in task.relearning.weights().items()}
    with relearned(task, task.relearning, batch):
        assert error() < plain
    for name, weight in task.relearning.weights().items():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad == flags[name]


def test_a_frozen_teacher_answers_as_the_base_while_the_model_is_relearned(tiny_pipeline):
    task = build_task(tiny_pipeline, relearning=2, relearning_rate=1e-2)
    batch = mixed_batch(task)
    teacher = task.frozen_copy()
    known = teacher.predict(batch, batch.prompts)
    with relearned(task, task.relearning, batch):
        assert not torch.equal(task.predict(batch, batch.prompts), known)
        assert torch.equal(teacher.predict(batch, batch.prompts), known)


@pytest.mark.parametrize("method", ["salun", "esd", "gradient_ascent"])
def test_any_trained_method_learns_against_it_and_repeats(tiny_pipeline, method):
    plain, task = build_task(tiny_pipeline), build_task(tiny_pipeline, relearning=2)
    kind = methods()[method].config
    config = kind(training=TrainingConfig(max_train_steps=2, learning_rate=1e-3))
    without, one, same = (methods()[method](t, config).deltas for t in (plain, task, task))
    layers = list(one)
    assert all(torch.equal(one[n].dense(), same[n].dense()) for n in layers)
    assert any(not torch.equal(one[n].dense(), without[n].dense()) for n in layers)


def test_classifiers_have_no_relearning_to_withstand():
    task = build_digits_task(build_digits_model())
    loss = SimpleNamespace()
    assert withstanding(task, loss, {}) is loss
