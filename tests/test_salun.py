import dataclasses
import os
import signal

import pytest
import torch
from hosts import build_digits_task, build_tiny_pipeline, build_tiny_task
from test_erasure import changed, snapshot
from torch import nn

from erase.core.mask import build_mask
from erase.core.saliency import accumulate
from erase.methods.salun import SalUnConfig, relabelling_loss, saliency, salun
from erase.methods.salun_lora import SalUnLoRAConfig, salun_lora
from erase.methods.salun_soft import SalUnSoftConfig, salun_soft
from erase.training.checkpoint import checkpoints, checkpoints_in
from erase.training.loop import TrainingConfig, TrainingStopped, step_seed, train

BRISK = TrainingConfig(
    max_train_steps=4, learning_rate=1e-2, adam_weight_decay=0.1, checkpointing_steps=2
)


def same_bytes(one, other) -> bool:
    return one.deltas.keys() == other.deltas.keys() and all(
        torch.equal(delta.dense(), other.deltas[name].dense()) for name, delta in one.deltas.items()
    )


@pytest.mark.parametrize("mask", ["top", "bottom", "random", "random_per_layer", "none"])
@pytest.mark.parametrize("teacher", ["frozen", "current"])
def test_only_masked_weights_change_and_the_base_not_at_all(tiny_pipeline, mask, teacher):
    before = snapshot(tiny_pipeline)
    config = SalUnConfig(density=0.3, mask=mask, teacher=teacher, training=BRISK)
    erasure = salun(build_tiny_task(tiny_pipeline), config)
    assert not changed(before, snapshot(tiny_pipeline))
    kept, total = erasure.recipe["mask"]["kept"], erasure.recipe["mask"]["of"]
    assert kept == (total if mask == "none" else int(0.3 * total))
    assert 0 < sum(delta.count for delta in erasure.deltas.values()) <= kept
    assert all(parameter.grad is None for parameter in tiny_pipeline.unet.parameters())


@pytest.mark.parametrize("components", [("text_encoder",), ("unet", "text_encoder")])
def test_the_text_encoder_can_be_edited_too(tiny_pipeline, components):
    task = build_tiny_task(tiny_pipeline, components)
    erasure = salun(task, SalUnConfig(training=BRISK))
    assert {name.split(".")[0] for name in erasure.deltas} == set(components)
    everything = [*tiny_pipeline.unet.parameters(), *tiny_pipeline.text_encoder.parameters()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in everything)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_masked_out_weights_are_bit_equal_after_training(tiny_task, precision):
    parameters = tiny_task.parameters()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    mask = build_mask({name: torch.rand(p.shape) for name, p in parameters.items()}, 0.3)
    config = dataclasses.replace(BRISK, mixed_precision=precision)
    train(tiny_task, lambda forget, *_: tiny_task.loss(forget), config, mask)
    for name, parameter in parameters.items():
        assert torch.equal(parameter[~mask.tensors[name]], before[name][~mask.tensors[name]]), name
    assert changed(before, parameters)


def test_a_teacher_that_is_not_known_is_refused(tiny_task):
    with pytest.raises(ValueError, match="teacher is 'frzen'; choose one of 'frozen', 'current'"):
        relabelling_loss(tiny_task, "frzen")


@torch.no_grad()
def test_a_teacher_answers_as_the_model_did_whatever_becomes_of_it(tiny_task):
    batch = next(iter(tiny_task.forget_batches(0)))
    before, teacher = tiny_task.predict(batch, batch.prompts), tiny_task.frozen_copy()
    weights = tiny_task.parameters()
    for weight in weights.values():
        weight.add_(torch.randn_like(weight))
    after = tiny_task.predict(batch, batch.prompts)
    assert torch.equal(teacher.predict(batch, batch.prompts), before)
    assert torch.equal(tiny_task.predict(batch, batch.prompts), after)
    assert not torch.equal(before, after)
    assert all(tiny_task.parameters()[name] is weight for name, weight in weights.items())


def test_same_seed_same_bytes():
    runs = [
        salun(build_tiny_task(build_tiny_pipeline()), SalUnConfig(training=BRISK)) for _ in "ab"
    ]
    assert same_bytes(*runs)


def test_epsilon_models_are_served_too():
    task = build_tiny_task(build_tiny_pipeline("epsilon"))
    batch = next(iter(task.forget_batches(0)))
    expected = (task.predict(batch, batch.prompts) - batch.noise).pow(2).mean()
    assert torch.allclose(task.loss(batch), expected)
    assert salun(task, SalUnConfig(training=BRISK)).deltas


def test_resumed_training_equals_uninterrupted(tmp_path, monkeypatch):
    whole = salun(build_tiny_task(build_tiny_pipeline()), SalUnConfig(training=BRISK))
    config, state, steps = SalUnConfig(training=BRISK), tmp_path / "state", []

    def interrupt_third_step(task, forget):
        steps.append(0)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    task = build_tiny_task(build_tiny_pipeline())
    plain = type(task).redirected_loss
    with monkeypatch.context() as patch:
        patch.setattr(
            type(task),
            "redirected_loss",
            lambda self, forget, teacher: (
                interrupt_third_step(self, forget) or plain(self, forget, teacher)
            ),
        )
        with checkpoints_in(state), pytest.raises(TrainingStopped, match="after step 3 of 4"):
            salun(task, config)
    assert checkpoints(state)[-1].name == "checkpoint-3"
    with checkpoints_in(state):
        assert same_bytes(salun(build_tiny_task(build_tiny_pipeline()), config), whole)


def test_another_trainings_checkpoints_are_refused(tmp_path):
    other = build_tiny_task(build_tiny_pipeline())
    other.seed = 5
    with checkpoints_in(tmp_path):
        salun(build_tiny_task(build_tiny_pipeline()), SalUnConfig(training=BRISK))
        with pytest.raises(ValueError, match="are another training's"):
            salun(build_tiny_task(build_tiny_pipeline()), SalUnConfig(density=0.2, training=BRISK))
        with pytest.raises(ValueError, match="are another training's"):
            salun(other, SalUnConfig(mask="none", training=BRISK))


@pytest.mark.parametrize("steps", [1, 9])
def test_a_broken_loss_is_refused_and_the_base_kept(tiny_pipeline, steps):
    before = snapshot(tiny_pipeline)
    training = TrainingConfig(max_train_steps=steps, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(ValueError, match="lower learning_rate"):
        salun(build_tiny_task(tiny_pipeline), SalUnConfig(training=training))
    assert not changed(before, snapshot(tiny_pipeline))


def test_an_adapter_that_breaks_is_refused(tiny_pipeline):
    training = TrainingConfig(max_train_steps=1, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(ValueError, match="lower learning_rate"):
        salun_lora(build_tiny_task(tiny_pipeline), SalUnLoRAConfig(training=training))


def test_negative_rates_are_refused():
    with pytest.raises(ValueError, match=r"learning_rate is -0\.1; give 0 or more"):
        TrainingConfig(learning_rate=-0.1)


def test_saliency_does_not_depend_on_the_sign_of_the_loss(tiny_task):
    def scores(sign):
        batches = tiny_task.forget_batches(step_seed(0, -1))
        losses = (sign * tiny_task.saliency_loss(batch) for batch in batches)
        return accumulate(tiny_task.parameters(), losses)

    ascent, descent = scores(-1), scores(1)
    assert all(torch.equal(ascent[name], descent[name]) for name in ascent)


def test_training_lowers_the_loss_it_minimises(tiny_task):
    batch = next(iter(tiny_task.forget_batches(0)))
    before = tiny_task.loss(batch).item()
    config = TrainingConfig(max_train_steps=20, learning_rate=1e-2)
    everything = tiny_task.editable()
    train(tiny_task, lambda forget, *_: tiny_task.loss(forget), config, parameters=everything)
    assert tiny_task.loss(batch).item() < before


@pytest.mark.parametrize("density", [0, 1.5])
def test_density_is_checked_before_any_work(density):
    with pytest.raises(ValueError, match="density"):
        SalUnConfig(density=density)


def test_a_kept_mask_serves_again_and_is_refused_for_another_base(tmp_path):
    config = SalUnConfig(mask_file=str(tmp_path / "mask.safetensors"), training=BRISK)
    one = salun(build_tiny_task(build_tiny_pipeline()), config)
    assert (tmp_path / "mask.safetensors").exists()
    assert same_bytes(salun(build_tiny_task(build_tiny_pipeline()), config), one)
    control = dataclasses.replace(config, mask="random")
    with pytest.raises(ValueError, match="another choice of weights"):
        salun(build_tiny_task(build_tiny_pipeline()), control)
    other = build_tiny_pipeline()
    other.unet.conv_in.weight.data += 1
    with pytest.raises(ValueError, match="another base"):
        salun(build_tiny_task(other), config)
    both = build_tiny_task(build_tiny_pipeline(), ("unet", "text_encoder"))
    with pytest.raises(ValueError, match="another set of tensors"):
        salun(both, config)


@pytest.mark.parametrize("estimator", ["abs_sum", "fisher", "fisher_ratio"])
def test_other_estimators_make_other_masks_of_the_same_size(tiny_task, estimator):
    scores = {name: saliency(tiny_task, name) for name in ("signed_sum", estimator)}
    masks = {name: build_mask(score, 0.3) for name, score in scores.items()}
    one, other = masks["signed_sum"], masks[estimator]
    assert one.kept == other.kept
    assert any((one.tensors[n] != other.tensors[n]).any() for n in one.tensors)


def test_the_layers_of_the_recipe_add_up(tiny_task):
    facts = salun(tiny_task, SalUnConfig(training=BRISK)).recipe["mask"]
    assert sum(layer["kept"] for layer in facts["layers"].values()) == facts["kept"]
    assert sum(layer["of"] for layer in facts["layers"].values()) == facts["of"]
    shares = [layer["saliency_share"] for layer in facts["layers"].values()]
    assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_more_sparsity_changes_fewer_weights(tiny_pipeline):
    kept = [
        salun_soft(
            build_tiny_task(tiny_pipeline), SalUnSoftConfig(sparsity, training=BRISK)
        ).recipe["mask"]["kept"]
        for sparsity in (0.0, 0.5, 2.0)
    ]
    assert kept[0] > kept[1] > kept[2]


def test_lora_ranks_follow_the_saliency(tiny_pipeline):
    config = SalUnLoRAConfig(rank=4, density=0.1, training=BRISK)
    erasure = salun_lora(build_tiny_task(tiny_pipeline), config)
    ranks = erasure.recipe["ranks"]
    assert max(ranks.values()) == 4
    assert min(ranks.values()) >= 1
    assert {f"{name}.weight": rank for name, rank in ranks.items()} == {
        name: delta.rank for name, delta in erasure.deltas.items()
    }
    assert not any("lora" in name for name, _ in tiny_pipeline.unet.named_parameters())


def test_lora_layers_whose_paths_end_alike_have_their_own_ranks():
    torch.manual_seed(0)
    block = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3, padding=1)})
    head = nn.Linear(256, 10)

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.block, self.head = nn.Conv2d(1, 4, 3, padding=1), block, head

        def forward(self, pictures):
            seen = self.block["conv1"](self.conv1(pictures).relu()).relu()
            return self.head(seen.flatten(1))

    config = SalUnLoRAConfig(rank=8, density=0.3, training=BRISK)
    erasure = salun_lora(build_digits_task(Nested()), config)
    ranks = erasure.recipe["ranks"]
    assert len(set(ranks.values())) > 1
    assert {name: erasure.deltas[f"{name}.weight"].rank for name in ranks} == ranks
    assert erasure.deltas.keys() == {f"{name}.weight" for name in ranks}
