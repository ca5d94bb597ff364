import sys

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline, build_tiny_task, draw_ghost
from test_erasure import changed, snapshot

from erase.core.subspace import subspace_of
from erase.erasure.erasure import Erasure
from erase.methods.projection import ProjectionConfig, projection
from erase.methods.rece import RECEConfig, adversary
from erase.methods.uce import UCEConfig, asked_of, retained, shared_edit, uce
from erase.models.tokens import paired_positions
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig


def test_a_low_rank_erasure_is_a_stock_lora(tiny_pipeline, tmp_path):
    erasure, base = (
        uce(build_tiny_task(tiny_pipeline), UCEConfig(rank=4)),
        draw_ghost(tiny_pipeline),
    )
    with erasure.apply(tiny_pipeline.components):
        ours = draw_ghost(tiny_pipeline)
    erasure.save_pretrained(tmp_path / "lora")
    tiny_pipeline.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(ours, draw_ghost(tiny_pipeline), atol=1e-5)
    assert not torch.allclose(ours, base, atol=1e-4)
    back = Erasure.from_pretrained(tmp_path / "lora")
    assert {delta.rank for delta in back.deltas.values()} == {4}


def test_uce_satisfies_its_normal_equations():
    generator = torch.Generator().manual_seed(0)
    tokens, wanted, kept = (
        torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (30, 30, 40)
    )
    config = UCEConfig(rank=12)
    up, down = shared_edit(asked_of(tokens, wanted), retained(subspace_of(kept), config), config)
    edit = (up @ down).requires_grad_()
    ridge = tokens.T @ tokens / 30 + kept.T @ kept / 40
    penalty = 1e-3 * ridge.diagonal().mean()
    loss = (tokens @ edit.T - (wanted - tokens)).pow(2).sum() / 30
    loss = loss + (kept @ edit.T).pow(2).sum() / 40 + penalty * edit.pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, edit)
    assert gradient.abs().max() < 1e-9


def test_rece_derives_the_tokens_that_read_most_like_the_base():
    generator = torch.Generator().manual_seed(0)
    shapes = (20, 12), (20, 12), (9, 12), (12, 12)
    tokens, wanted, weight, edit = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    turn = adversary(weight.T @ weight, edit, RECEConfig(embedding_weight=0.3, ridge="absolute"))
    derived = (tokens @ turn.T).requires_grad_()
    miss = derived @ (torch.eye(12) + edit).T @ weight.T - tokens @ weight.T
    loss = miss.pow(2).sum() + 0.3 * derived.pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, derived)
    assert gradient.abs().max() < 1e-9
    found = asked_of(tokens, wanted).turned(turn)
    summed = asked_of(derived.detach(), wanted)
    assert torch.allclose(found.moment, summed.moment)
    assert torch.allclose(found.change, summed.change)


def test_what_is_retained_is_read_a_few_prompts_at_once_to_the_same_edit(tiny_task, monkeypatch):
    whole = uce(tiny_task, UCEConfig()).deltas
    monkeypatch.setattr(sys.modules["erase.methods.uce"], "AT_ONCE", 2)
    for name, delta in uce(tiny_task, UCEConfig()).deltas.items():
        assert torch.allclose(delta.dense(), whole[name].dense(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "anchor", "expected"),
    [
        ([0, 5, 7, 9], [0, 6, 7, 9], [0, 1, 2, 3, 4]),
        ([0, 5, 5, 7, 9], [0, 6, 7, 9], [0, 1, 1, 2, 3, 4]),
        ([0, 5, 7, 9], [0, 6, 6, 7, 9], [0, 2, 3, 4, 5, 5]),
        ([0, 5, 9], [0, 9], [0, 1, 1, 2]),
        # Cut off: what is read of both ends in an end token.
        ([0, 5, 7, 8, 9], [0, 6, 6, 7, 8, 9], [0, 2, 3, 3]),
        ([0, 5, 5, 7, 8, 9], [0, 6, 7, 8, 9], [0, 1, 1, 3]),
    ],
)
def test_tokens_are_paired_around_the_concept(tokens, anchor, expected):
    assert paired_positions(tokens, anchor, len(expected)) == expected


def test_uce_leaves_the_base_alone(tiny_pipeline):
    before = snapshot(tiny_pipeline)
    uce(build_tiny_task(tiny_pipeline), UCEConfig())
    assert not changed(before, snapshot(build_tiny_pipeline()))
    assert not changed(before, snapshot(tiny_pipeline))


@pytest.mark.parametrize("linear", ["fc1", "fc2"])
def test_a_lora_of_the_text_encoders_mlp_alone_loads_too(tiny_pipeline, tmp_path, linear):
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    config = DiffusionTaskConfig(("text_encoder",), include=(f"*{linear}.weight",))
    task = DiffusionTask(tiny_pipeline, prompts, CATALOGUE.sampling, config)
    erasure = projection(task, ProjectionConfig(space="mean_difference"))
    assert [name.split(".")[-2] for name in erasure.deltas] == [linear]
    erasure.save_pretrained(tmp_path / "lora")
    assert Erasure.from_pretrained(tmp_path / "lora").deltas.keys() == erasure.deltas.keys()
    with erasure.apply(tiny_pipeline.components):
        ours = draw_ghost(tiny_pipeline)
    base = draw_ghost(tiny_pipeline)
    tiny_pipeline.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(draw_ghost(tiny_pipeline), ours, atol=1e-5)
    assert not torch.equal(base, ours)


@pytest.mark.parametrize("dimension", [8, 16])
def test_a_projection_that_would_leave_nothing_of_any_input_is_refused(tiny_task, dimension):
    width = len(next(iter(projection(tiny_task, ProjectionConfig()).deltas.values())).down[0])
    config = ProjectionConfig(space="contrastive", rank=dimension)
    if dimension < width:
        assert projection(tiny_task, config).recipe["ranks"] == {"text": dimension}
        return
    with pytest.raises(ValueError, match=f"all {width} directions that text has"):
        projection(tiny_task, config)
