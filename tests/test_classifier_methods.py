"""Closed forms against plain NumPy, and what single classifier methods promise."""

import dataclasses

import numpy as np
import pytest
import torch
from hosts import accuracies, build_digits_model, build_digits_task, class_indices, digits
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.data import Subset, TensorDataset

from erase.core.activations import capture_inputs
from erase.core.projection import discriminative
from erase.core.subspace import SubspaceFitter
from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.methods.boundary import BoundaryShrinkConfig
from erase.methods.influence import solve_fisher
from erase.methods.last_layers import LastLayersConfig
from erase.methods.projection import ProjectionConfig
from erase.methods.random_label import RandomLabelConfig
from erase.methods.ssd import SSDConfig, dampening
from erase.methods.undo import UndoConfig, mix_
from erase.tasks.classification.task import ClassificationTaskConfig
from erase.training.config import TrainedConfig
from erase.training.loop import TrainingConfig


def test_dampening_beyond_a_threshold_no_ratio_reaches_changes_nothing():
    factor = dampening(torch.rand(50), torch.rand(50), SSDConfig(selection=1e30))
    assert torch.equal(factor, torch.ones(50))


def test_dampening_is_the_papers_rule():
    rng = np.random.default_rng(0)
    forget, overall = rng.random((2, 500)) ** 4
    factor = np.where(forget > 3 * overall, np.minimum(0.7 * overall / forget, 1), 1)
    ours = dampening(torch.tensor(forget), torch.tensor(overall), SSDConfig(3, 0.7))
    assert np.allclose(ours.numpy(), factor, rtol=1e-12)


def test_ssd_that_selects_nothing_changes_nothing(trained):
    assert not methods()["ssd"](build_digits_task(trained), SSDConfig(selection=1e9)).deltas


def test_neither_batch_size_nor_order_decides_what_ssd_dampens(trained):
    part, forget = Subset(digits(), range(150)), [i for i in class_indices(3) if i < 150]
    after = []
    for size, seed in ((64, 0), (64, 1), (47, 2)):
        config = ClassificationTaskConfig(batch_size=size)
        task = build_digits_task(trained, dataset=part, forget=forget, config=config, seed=seed)
        with methods()["ssd"](task).apply(task.components):
            after.append(parameters_to_vector(task.parameters().values()).detach().clone())
    assert (after[0] != parameters_to_vector(trained.parameters())).any()
    for other in after[1:]:
        assert torch.allclose(other, after[0], rtol=1e-4, atol=1e-6)


def test_scaled_projection_is_kodges_formula():
    rng = np.random.default_rng(0)
    forget, retain = rng.normal(size=(60, 12)), rng.normal(size=(90, 12)) * np.arange(1, 13)

    def scaled(rows, alpha):
        left, singular, _ = np.linalg.svd(rows.T, full_matrices=False)
        share = singular**2 / (singular**2).sum()
        return left * (alpha * share / ((alpha - 1) * share + 1)) @ left.T

    wanted = scaled(forget, 3.0) - scaled(forget, 3.0) @ scaled(retain, 100.0)
    spaces = [SubspaceFitter(12).update(torch.tensor(rows)).fit() for rows in (forget, retain)]
    ours = discriminative(*spaces, 3.0, 100.0)
    up, down = ours.edit(torch.eye(12))  # W (I - P_dis)^T
    assert np.allclose((up @ down).numpy(), -wanted.T, atol=1e-10)


def test_projection_is_nothing_where_all_is_retained():
    rows = torch.randn(50, 6).double()
    space = SubspaceFitter(6).update(rows).fit()
    whole = discriminative(space, space, 3.0, 1e12)
    assert (whole.left @ whole.right).abs().max() < 1e-9


def test_the_fisher_system_is_solved():
    gradients, vector = torch.randn(5, 30).double(), torch.randn(30).double()
    matrix = gradients.T @ gradients / 5 + 0.3 * torch.eye(30).double()
    solved = solve_fisher(gradients, vector, 0.3)
    assert torch.allclose(matrix @ solved, vector)


def test_retrain_brings_the_norms_statistics_along(trained):
    task = build_digits_task(trained)
    erasure = methods()["retrain"](task)
    assert "model.1.running_mean" in erasure.deltas
    with erasure.apply(task.components):
        forget, retain = accuracies(task)
    assert forget == 0.0
    assert retain > 0.9


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(64)), nn.Linear(64, 10)

    def forward(self, inputs):
        return self.head(self.scale * inputs.flatten(1))


def test_an_oracle_with_trained_parts_is_refused():
    with pytest.raises(ValueError, match="cannot be reset"):
        build_digits_task(Scaled()).untrained()
    fresh = build_digits_task(Scaled(), build=Scaled).untrained().components["model"]
    assert torch.equal(fresh.scale, torch.ones(64))


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_only_the_last_layers_change(trained, name):
    training = TrainingConfig(max_train_steps=3, learning_rate=1e-2)
    erasure = methods()[name](build_digits_task(trained), LastLayersConfig(1, training=training))
    assert set(erasure.deltas) == {"model.7.weight", "model.7.bias"}


def test_the_extra_class_is_gone_afterwards(trained):
    task = build_digits_task(trained)
    erasure = methods()["boundary_expand"](task)
    model = task.components["model"]
    assert model.state_dict().keys() == build_digits_model().state_dict().keys()
    assert not model[7]._forward_pre_hooks
    assert {name for name in erasure.deltas} <= {f"model.{n}" for n in model.state_dict()}


def test_bias_suppression_needs_a_whole_class(trained):
    some = class_indices(3)[:-1]
    with pytest.raises(ValueError, match="forgotten as a whole"):
        methods()["bias_suppression"](build_digits_task(trained, forget=some))
    erasure = methods()["bias_suppression"](build_digits_task(trained))
    assert set(erasure.deltas) == {"model.7.bias"}


@pytest.mark.parametrize("classes", [(3,), (3, 7)])
def test_a_class_projected_out_of_the_head_keeps_its_bias_alone(trained, classes):
    forget = [index for label in classes for index in class_indices(label)]
    task = build_digits_task(trained, forget=forget)
    inputs, (_, head) = digits().tensors[0][:50], task.head()
    weight = head.weight.detach().clone()
    with methods()["pour_p"](task).apply(task.components):
        logits, after = task.predict(inputs), head.weight.detach().clone()
    assert torch.allclose(logits[:, list(classes)], head.bias[list(classes)], atol=1e-4)
    rows = weight[list(classes)].double().numpy()
    projector = np.eye(rows.shape[1]) - np.linalg.pinv(rows) @ rows
    assert np.allclose(after.numpy(), weight.numpy() @ projector, atol=1e-5)


def test_distilling_a_class_out_changes_features_and_not_the_head(trained):
    task = build_digits_task(trained)
    (_, head), inputs = task.head(), next(iter(task.forget_batches(0))).inputs
    row = head.weight[3].detach()

    def along() -> torch.Tensor:
        heard = []
        with torch.no_grad(), capture_inputs({"head": head}, lambda _, rows: heard.append(rows)):
            task.predict(inputs)
        return (heard[0] @ row).abs().mean()

    before, known = along(), accuracies(task)
    training = TrainingConfig(max_train_steps=40, learning_rate=2e-3)
    erasure = methods()["pour_d"](task, TrainedConfig(training=training))
    assert not {"model.7.weight", "model.7.bias"} & set(erasure.deltas)
    with erasure.apply(task.components):
        assert along() < before / 2
        forget, retain = accuracies(task)
    assert known[0] > 0.9 > 0.1 > forget
    assert retain > 0.8


@pytest.mark.parametrize("method", ["pour_p", "pour_d"])
def test_pour_needs_a_whole_class(trained, method):
    some = build_digits_task(trained, forget=class_indices(3)[:-1])
    with pytest.raises(ValueError, match="forgotten as a whole"):
        methods()[method](some)


@pytest.mark.parametrize(("noise", "expected"), [(0.25, 0.75), (1.0, 0.0)])
def test_undo_starts_between_the_base_and_a_fresh_model(trained, noise, expected):
    base, fresh = trained.state_dict(), build_digits_model()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    mix_(fresh, base, noise)
    for name, tensor in fresh.state_dict().items():
        if tensor.is_floating_point():
            mixed = expected * base[name] + (1 - expected) * before[name]
            assert torch.allclose(tensor, mixed, atol=1e-6)


def test_undo_learns_its_teachers_answers_and_nothing_of_the_forget_set(trained, tmp_path):
    task = build_digits_task(trained)
    original = {name: weight.clone() for name, weight in task.state().items()}
    erasure = methods()["undo"](task, UndoConfig(effort=1.0))
    assert all(torch.equal(weight, original[name]) for name, weight in task.state().items())
    with erasure.apply(task.components):
        forget, retain = accuracies(task)
    assert forget < 0.05
    assert retain > 0.9
    pictures, labels = digits().tensors
    black = TensorDataset(pictures * (labels != 3)[:, None, None, None], labels)
    other = methods()["undo"](build_digits_task(trained, dataset=black), UndoConfig(effort=1.0))
    assert _equal(erasure, other)
    methods()["bias_suppression"](task).save_pretrained(tmp_path / "teacher")
    taught = methods()["undo"](task, UndoConfig(str(tmp_path / "teacher"), effort=1.0))
    assert not _equal(erasure, taught)


def _equal(one: Erasure, other: Erasure) -> bool:
    pairs = ((delta, other.deltas[name]) for name, delta in one.deltas.items())
    return all(torch.equal(ours.dense(), theirs.dense()) for ours, theirs in pairs)


class TinyViT(nn.Module):
    """Rows of a digit as tokens through one block of PyTorch's own attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, pictures):
        tokens = self.embed(pictures[:, 0])
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + attended).mean(1))


def test_packed_attention_is_projected_by_what_it_reads(tmp_path):
    torch.manual_seed(0)
    task = build_digits_task(TinyViT())
    config = ProjectionConfig(["layers"], "scaled")
    assert set(task.sites("layers")) == {"model.embed", "model.attention", "model.head"}
    erasure = methods()["projection"](task, config)
    assert "model.attention.in_proj_weight" in erasure.deltas
    erasure.save_pretrained(tmp_path / "erasure")
    back = Erasure.from_pretrained(tmp_path / "erasure")
    for name, delta in erasure.deltas.items():
        assert torch.equal(delta.dense(), back.deltas[name].dense())


def test_a_split_attention_gets_what_a_packed_one_does():
    torch.manual_seed(0)
    packed = TinyViT()
    split = nn.ModuleDict({p: nn.Linear(16, 16) for p in ("q", "k", "v")})
    weights = packed.attention.in_proj_weight.chunk(3)
    for layer, weight in zip(split.values(), weights, strict=True):
        layer.weight.data.copy_(weight)

    class SplitViT(TinyViT):
        def __init__(self):
            super().__init__()
            self.split = split

        def forward(self, pictures):
            tokens = self.embed(pictures[:, 0])
            q, k, v = (
                self.split[p](tokens).view(*tokens.shape[:2], 2, 8).transpose(1, 2) for p in "qkv"
            )
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            attended = self.attention.out_proj(attended.transpose(1, 2).flatten(2))
            return self.head((tokens + attended).mean(1))

    other = SplitViT()
    other.load_state_dict(packed.state_dict(), strict=False)
    config = ProjectionConfig(["layers"], "scaled")
    one = methods()["projection"](build_digits_task(packed), config).deltas
    two = methods()["projection"](build_digits_task(other), config).deltas
    joined = torch.cat([two[f"model.split.{p}.weight"].dense() for p in "qkv"])
    assert torch.allclose(one["model.attention.in_proj_weight"].dense(), joined, atol=1e-5)


def test_the_default_configs_can_be_replaced():
    for method in methods().values():
        assert dataclasses.replace(method.config()) == method.config()


def test_classes_forgotten_as_a_whole_are_known(trained):
    both = [*class_indices(3), class_indices(5)[0]]
    assert build_digits_task(trained, forget=both).forgotten_classes() == [3]
    assert len(digits()) == 1347


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("boundary_shrink", BoundaryShrinkConfig(pixels=True), r"inputs in \[0, 1\]"),
        ("random_label", RandomLabelConfig("frozen", alternating=True), "teacher current"),
        (
            "finetune",
            TrainedConfig(training=TrainingConfig(use_8bit_adam=True, optimizer="sgd")),
            "no SGD",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(trained, name, config, said):
    pictures, labels = digits().tensors
    task = build_digits_task(trained, dataset=TensorDataset(pictures - 1, labels))
    with pytest.raises(ValueError, match=said):
        methods()[name](task, config)
