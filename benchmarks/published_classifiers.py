"""Classifiers trained by each preset `published`, beside the authors' own steps written down anew.

A small network on a few digits, in float64: what the weights have become after some steps, the
batches being the same. `published.py` prints how far apart they are.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import TensorDataset

from erase.methods import get_method, preset_of
from erase.methods.influence import newton_step
from erase.methods.ssd import dampening, importance
from erase.tasks.classification.config import ClassificationBatch, ClassificationTaskConfig
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.task import ClassificationTask
from erase.training.loop import step_seed

SIZE, FORGET = 104, 24  # so that a batch of 24 is all that is forgotten, and .3 of what is kept
Models = tuple[nn.Module, nn.Module]  # the one that is trained, the original
Loss = Callable[[Models, ClassificationBatch, ClassificationBatch, int], Tensor]
CROSS = F.cross_entropy
WITH_MOMENTUM = partial(SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)


def relative(ours: np.ndarray | Tensor, theirs: np.ndarray | Tensor) -> float:
    """The norm of the difference over that of the formula's."""
    ours, theirs = (np.asarray(torch.as_tensor(part).detach().double()) for part in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


class Watched(ClassificationTask):
    """A task that keeps the weights its model had when it was last asked."""

    last: Tensor

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes]."""
        self.last = weights_of(self.components["model"])
        return super().predict(inputs)


def weights_of(model: nn.Module) -> Tensor:
    """A copy of all weights: [d]."""
    return parameters_to_vector(model.parameters()).detach().clone()


def task_of(batch_size: int) -> Watched:
    """Digits, of which the first are to be forgotten."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)]
    data = TensorDataset(*(part[:SIZE] for part in load_data("digits").train.tensors))
    config = ClassificationTaskConfig(batch_size=batch_size)
    model = nn.Sequential(nn.Flatten(), *layers).double()
    return Watched(model, data, range(FORGET), 10, config)


def after_steps(
    method: str,
    loss: Loss,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    batch_size: int = FORGET,
    steps: int = 14,
    begin: Callable[[ClassificationTask], nn.Module] = lambda task: task.components["model"],
    learning_rate: float = 0.0,
) -> float:
    """How far the change of the weights is from the authors', whose model is as `begin` has it.

    learning_rate: the preset's own, if it is 0.
    """
    task, preset = task_of(batch_size), preset_of(method, "published")
    model, original = (copy.deepcopy(of(task)) for of in (begin, lambda t: t.components["model"]))
    first, stepper = weights_of(model), optimizer(p for p in model.parameters() if p.requires_grad)
    for step in range(steps):
        forget = next(task.forget_batches(step_seed(0, step)))
        retain = next(task.retain_batches(step_seed(0, step) + 1))
        stepper.zero_grad()
        loss((model, original), forget, retain, step).backward()
        stepper.step()
    training = preset.training  # type: ignore[attr-defined]
    rate = learning_rate or training.learning_rate
    # What stands after these steps is seen as the next one begins.
    training = replace(training, max_train_steps=steps + 1, learning_rate=rate)
    get_method(method)(task, replace(preset, training=training))  # type: ignore[call-arg]
    return relative(task.last - first, weights_of(model) - first)


def scrub(
    models: Models, forget: ClassificationBatch, retain: ClassificationBatch, step: int
) -> Tensor:
    """large_scale_unlearning.ipynb and train_distill of SCRUB 98ffb11: 1 batch against 4."""
    epoch, place = divmod(step, 5)
    leaving = epoch < 2 and place < 1
    student, teacher = (model((forget if leaving else retain).inputs) for model in models)
    answer = F.softmax(teacher.detach() / 4, 1)
    apart = F.kl_div(F.log_softmax(student / 4, 1), answer, reduction="sum") * 16 / len(student)
    return -apart if leaving else 0.99 * CROSS(student, retain.labels) + 0.001 * apart


def bad_teacher(
    untrained: nn.Module,
    models: Models,
    forget: ClassificationBatch,
    retain: ClassificationBatch,
    step: int,
) -> Tensor:
    """UnlearnerLoss of bad-teaching-unlearning f1aa988, of both sets in one batch."""
    wanted = torch.cat([untrained(forget.inputs), models[1](retain.inputs)]).detach()
    student = models[0](torch.cat([forget.inputs, retain.inputs]))
    apart = F.kl_div(F.log_softmax(student, 1), F.softmax(wanted, 1), reduction="sum")
    return apart / student.numel()


def boundary_shrink(models: Models, forget: ClassificationBatch, *_: Any) -> Tensor:
    """boundary_shrink and FGSM of Boundary-Unlearning-Code 19f9f23, of pictures as they are."""
    moved = forget.inputs.clone().requires_grad_()
    CROSS(models[1](moved), forget.labels).backward()
    assert moved.grad is not None
    stepped = torch.clamp(moved.detach() + 0.1 * moved.grad.sign(), 0, 1)
    nearest = models[1](torch.round(stepped * 255) / 255).argmax(1)
    return CROSS(models[0](forget.inputs), nearest)


def change_of(models: Models) -> Tensor:
    """l2_penalty of SCRUB 98ffb11, its weight decay .1."""
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    return sum(((new - old.detach()) ** 2).sum() for new, old in pairs) * (0.1 / 2)


def neggrad_plus(
    models: Models, forget: ClassificationBatch, retain: ClassificationBatch, step: int
) -> Tensor:
    """run_neggrad_epoch of small_scale_unlearning.ipynb of SCRUB 98ffb11."""
    kept = CROSS(models[0](retain.inputs), retain.labels) + change_of(models)
    return 0.95 * kept - 0.05 * CROSS(models[0](forget.inputs), forget.labels)


def random_label(
    models: Models, forget: ClassificationBatch, retain: ClassificationBatch, step: int
) -> Tensor:
    """RL.py of Unlearn-Saliency a6e89fd, for CIFAR-10: 1 batch of wrong labels, then 4."""
    if step % 5 == 0:
        return CROSS(models[0](forget.inputs), forget.answers)
    return CROSS(models[0](retain.inputs), retain.labels)


def l1_sparse(
    models: Models, forget: ClassificationBatch, retain: ClassificationBatch, step: int
) -> Tensor:
    """FT_iter of Unlearn-Sparse 80ba55d, alpha 5e-4, epochs of one batch."""
    norm = parameters_to_vector(models[0].parameters()).norm(p=1)
    return CROSS(models[0](retain.inputs), retain.labels) + 5e-4 * (1 - step / 15) * norm


def gradient_ascent(models: Models, forget: ClassificationBatch, *_: Any) -> Tensor:
    """GA.py of Unlearn-Sparse 80ba55d."""
    return -CROSS(models[0](forget.inputs), forget.labels)


def finetune(
    models: Models, forget: ClassificationBatch, retain: ClassificationBatch, step: int
) -> Tensor:
    """FT_iter of Unlearn-Sparse 80ba55d."""
    return CROSS(models[0](retain.inputs), retain.labels)


def last_layers(
    begun: nn.Module,
    models: Models,
    forget: ClassificationBatch,
    retain: ClassificationBatch,
    step: int,
) -> Tensor:
    """run_train_epoch of small_scale_unlearning.ipynb of SCRUB 98ffb11."""
    return CROSS(models[0](retain.inputs), retain.labels) + change_of((models[0], begun))


def first_held(model: nn.Module) -> nn.Module:
    """A copy whose last two layers alone are trained."""
    held = copy.deepcopy(model)
    held[1].requires_grad_(False)  # type: ignore[index]
    return held


def last_reset(task: ClassificationTask) -> nn.Module:
    """The same, and these as they were before any training."""
    model, fresh = first_held(task.components["model"]), task.untrained().components["model"]
    for place in (3, 5):
        model[place].load_state_dict(fresh[place].state_dict())  # type: ignore[index]
    return model


def last_two(method: str, begin: Callable[[ClassificationTask], nn.Module]) -> float:
    """CF-k and EU-k of two layers."""
    loss = partial(last_layers, begin(task_of(FORGET)))
    return after_steps(method, loss, partial(SGD, lr=0.01), begin=begin)


def influence() -> float:
    """Wfisher.py of Unlearn-Sparse 80ba55d: alpha .2, all retained samples one by one."""
    task, preset = task_of(FORGET), preset_of("influence", "published")
    model, kept = task.components["model"], len(task.retain)

    def gradient(batch: ClassificationBatch) -> Tensor:
        loss = CROSS(model(batch.inputs), batch.labels)
        return parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))

    def summed(batches: Iterable[ClassificationBatch]) -> Tensor:
        return sum(gradient(batch) * len(batch) for batch in batches)

    seed = step_seed(0, -1)
    forget, retain = summed(task.forget_batches(seed)), summed(task.retain_batches(seed + 1))
    vector = forget / SIZE - retain * FORGET / (SIZE * kept)
    base = None
    singles = (
        batch.shard(i, len(batch))
        for batch in task.retain_batches(seed + 1)
        for i in range(len(batch))
    )
    for each in map(gradient, islice(singles, 1002)):
        if base is None:
            base = each
            continue
        inner = torch.dot(base, each)
        vector = vector - (torch.dot(vector, each) / (1000 + inner)) * base
        base = base - (inner / (1000 + inner)) * base
    return relative(newton_step(task, preset), 0.2 * vector)


def ssd() -> float:
    """ssd.py of selective-synaptic-dampening cdfdc0e: alpha 10, lambda 1, batches of 64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    data = load_data("digits").train
    classes = (data.tensors[1] == 3).nonzero().flatten().tolist()
    judged, preset = ClassificationTask(model, data, classes, 10), preset_of("ssd", "published")
    sets = judged.forget_batches, judged.training_batches
    ours = [importance(judged, of(seed), judged.loss, "fisher") for seed, of in enumerate(sets)]
    theirs = []
    for seed, of in enumerate(sets):
        summed = [torch.zeros_like(parameter) for parameter in model.parameters()]
        seen = list(of(seed))
        for batch in seen:
            loss = F.cross_entropy(model(batch.inputs), batch.labels)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            summed = [total + grad.pow(2) for total, grad in zip(summed, grads, strict=True)]
        theirs.append([total / len(seen) for total in summed])
    worst = 0.0
    for (name, weight), forget, whole in zip(judged.parameters().items(), *theirs, strict=True):
        wanted, update = copy.deepcopy(weight.detach()), whole.mul(1.0).div(forget)
        places = torch.where(forget > whole.mul(10.0))
        wanted[places] = wanted[places].mul(update[places].clamp(max=1))
        found = weight.detach() * dampening(ours[0][name], ours[1][name], preset)
        worst = max(worst, relative(found, wanted))
    return worst if preset.weigh == "batches" else np.inf


def _scrub() -> float:
    """At its own rate, and at one at which the model gets away from its teacher so soon."""
    slowly = after_steps("scrub", scrub, partial(WITH_MOMENTUM, lr=5e-4))
    fast = after_steps("scrub", scrub, partial(WITH_MOMENTUM, lr=0.5), learning_rate=0.5)
    return max(slowly, fast)


def _bad_teacher() -> float:
    untrained = task_of(FORGET).untrained().components["model"]
    return after_steps("bad_teacher", partial(bad_teacher, untrained), partial(Adam, lr=1e-4))


OF_CLASSIFIERS: dict[str, Callable[[], float]] = {
    "bad_teacher": _bad_teacher,
    "boundary_shrink": lambda: after_steps(
        "boundary_shrink", boundary_shrink, partial(SGD, lr=1e-5, momentum=0.9)
    ),
    "cf_k": lambda: last_two("cf_k", lambda task: first_held(task.components["model"])),
    "eu_k": lambda: last_two("eu_k", last_reset),
    "finetune": lambda: after_steps("finetune", finetune, WITH_MOMENTUM),
    "gradient_ascent": lambda: after_steps(
        "gradient_ascent", gradient_ascent, partial(WITH_MOMENTUM, lr=1e-4)
    ),
    "influence": influence,
    "l1_sparse": lambda: after_steps("l1_sparse", l1_sparse, WITH_MOMENTUM, batch_size=SIZE),
    "neggrad_plus": lambda: after_steps("neggrad_plus", neggrad_plus, partial(SGD, lr=0.01)),
    "random_label": lambda: after_steps("random_label", random_label, WITH_MOMENTUM),
    "scrub": _scrub,
    "ssd": ssd,
}
