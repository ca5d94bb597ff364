"""Pipelines stored in float16 and bfloat16: what is erased, in what it is computed."""

import copy

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VectorQuantizer
from hosts import build_tiny_pipeline, build_tiny_task, digits, trained_digits_model
from test_erasure import changed
from tiny_families import SIDE, build_family
from torch import nn
from transformers import Gemma3TextConfig, Gemma3TextModel, Qwen3Config, Qwen3ForCausalLM

from erase import ClassificationTask
from erase.core.precision import FIRST_SCALE, LossScale, MasterWeights, computed_in_float32
from erase.core.saliency import accumulate
from erase.methods import methods, serving
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig, TrainingConfig

HALVES = (torch.bfloat16, torch.float16)
ALL = (torch.float32, *HALVES)
FAMILIES = ("sdxl", "sd3", "flux", "pixart")
CLOSED = ("projection", "uce", "rece", "speed", "oce", "balance")


def small(method: str):
    kind = methods()[method].config
    if method == "balance":  # as far as it reads text: what it hears, denoisers round by themselves
        return kind(heard=0)
    if not issubclass(kind, TrainedConfig):
        return kind()
    return kind(training=TrainingConfig(max_train_steps=3, learning_rate=1e-3))


def erase_from(pipeline, method: str):
    return methods()[method](build_tiny_task(pipeline, (), SIDE), small(method))


def weights_of(pipeline) -> dict[str, torch.Tensor]:
    modules = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
    return {
        f"{component}.{name}": tensor.clone()
        for component, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize(("number", "method"), [*enumerate(serving(DiffusionTask))])
def test_every_method_works_on_half_precision_and_leaves_it_bit_equal(number, method):
    dtype = HALVES[number % 2]
    pipeline = build_tiny_pipeline().to(dtype)
    before = weights_of(pipeline)
    erasure = erase_from(pipeline, method)
    assert not changed(before, weights_of(pipeline))
    applied = erasure.apply(pipeline.components)
    assert changed(before, weights_of(pipeline))
    applied.revert()
    assert not changed(before, weights_of(pipeline))
    assert {t.dtype for t in weights_of(pipeline).values() if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served_in_half_precision(family):
    for dtype, method in zip(HALVES, ("projection", "salun"), strict=True):
        pipeline = build_family(family).to(dtype)
        erasure = erase_from(pipeline, method)
        with erasure.apply(pipeline.components):
            assert all(torch.isfinite(tensor).all() for tensor in weights_of(pipeline).values())


@pytest.mark.parametrize("family", ["sd1", *FAMILIES])
@pytest.mark.parametrize("method", CLOSED)
def test_closed_forms_add_no_rounding_to_that_of_the_weights(method, family):
    for dtype in HALVES:
        found = erase_from(build_family(family).to(dtype), method).deltas
        wanted = erase_from(build_family(family).to(dtype).to(torch.float32), method).deltas
        assert found.keys() == wanted.keys()
        for name, delta in found.items():
            assert torch.equal(delta.dense(), wanted[name].dense()), name


@pytest.mark.parametrize("made_in", ALL)
def test_a_base_is_known_in_other_precisions_and_another_is_refused(made_in):
    erasure = erase_from(build_tiny_pipeline().to(made_in), "uce")
    for dtype in ALL:
        if {dtype, made_in} == set(HALVES):
            continue  # one rounded twice is not one rounded once
        base = build_tiny_pipeline().to(dtype)
        erasure.apply(base.components).revert()
        name = next(iter(erasure.deltas)).removeprefix("unet.")
        with torch.no_grad():
            base.unet.get_parameter(name).flatten()[3] += 0.125
        told = str(made_in)[6:]
        wanted = told if made_in == torch.float32 else f"{told} or float32"
        said = f"differs from the base .* in {told}; load that base in {wanted}, or"
        with pytest.raises(ValueError, match=said):
            erasure.apply(base.components)


def test_half_precision_trains_by_steps_that_its_rounding_would_lose():
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(trained_digits_model()).to(dtype)
        task = ClassificationTask(model, digits(), range(50), 10)
        config = small("gradient_ascent").training
        config = methods()["gradient_ascent"].config(
            training=TrainingConfig(max_train_steps=config.max_train_steps, learning_rate=1e-6)
        )
        erasure = methods()["gradient_ascent"](task, config)
        moved[dtype] = sum(int((d.dense() != 0).sum()) for d in erasure.deltas.values())
    assert moved[torch.bfloat16] > 0.9 * moved[torch.float32]


def test_the_model_computes_with_roundings_of_its_masters():
    own = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = MasterWeights({"w": own})
    (master,) = masters.tensors.values()
    optimizer = torch.optim.SGD([master], lr=1e-3)
    for _ in range(3):
        masters.backward(own.sum())
        optimizer.step()
        optimizer.zero_grad()
        masters.write_back()
    assert torch.allclose(master, torch.full((4,), 1 - 3e-3))
    assert torch.equal(own, master.bfloat16())
    wide = nn.Parameter(torch.ones(4))
    assert MasterWeights({"w": wide}).tensors["w"] is wide


def test_masters_hold_what_may_change_alone_and_the_rest_stays_bit_equal():
    torch.manual_seed(0)
    start, kept = torch.randn(5, 7).bfloat16(), torch.rand(5, 7) < 0.5
    both = [nn.Parameter(start.clone()) for _ in "ab"]
    cut, full = MasterWeights({"w": both[0]}, {"w": kept}), MasterWeights({"w": both[1]})
    assert cut.tensors["w"].shape == (int(kept.sum()),)
    assert not cut.whole
    for masters, own in ((cut, both[0]), (full, both[1])):
        optimizer = torch.optim.AdamW(masters.tensors.values(), lr=1e-2, fused=True)
        for _ in range(3):
            masters.backward((own.float() * kept).square().sum())
            optimizer.step()
            optimizer.zero_grad()
            masters.write_back()
        values = masters.values()["w"]
        assert torch.equal(values.bfloat16(), own)
    assert torch.equal(cut.values()["w"][kept], values[kept])
    assert torch.equal(both[0][~kept], start[~kept])
    assert not torch.equal(both[0][kept], start[kept])
    none = MasterWeights({"w": both[0]}, {"w": torch.zeros(5, 7, dtype=torch.bool)})
    none.write_back()
    assert torch.equal(none.values()["w"], both[0].float())


def test_gradients_that_float16_cannot_hold_are_scaled_until_it_can():
    small, large = (nn.Parameter(torch.ones(3, dtype=torch.float16)) for _ in "ab")
    masters = MasterWeights({"small": small, "large": large})
    masters.backward((1e-7 * small.float()).sum())
    assert torch.allclose(masters.tensors["small"].grad, torch.full((3,), 1e-7), rtol=1e-2)
    masters.backward((5e3 * large.float()).sum())
    assert torch.allclose(masters.tensors["large"].grad, torch.full((3,), 5e3), rtol=1e-2)
    assert masters.state["factor"] < FIRST_SCALE
    assert not LossScale([nn.Parameter(torch.ones(1, dtype=torch.bfloat16))])
    scores = accumulate({"small": small}, [(1e-7 * small.float()).sum()])
    assert torch.allclose(scores["small"], torch.full((3,), 1e-7), rtol=1e-2)


@pytest.mark.parametrize("family", ["sd1", *FAMILIES])
@torch.no_grad()
def test_half_precision_modules_compute_as_their_float32_copies_would(family):
    pipeline = build_family(family).to(torch.bfloat16)
    encoders = {n: m for n, m in pipeline.components.items() if n.startswith("text_encoder") and m}
    tokens = torch.arange(6)[None]
    for module in encoders.values():
        wanted = copy.deepcopy(module).float()(tokens)[0]
        before = {name: (id(t), t.data_ptr()) for name, t in module.named_parameters()}
        with computed_in_float32([module]):
            assert torch.equal(module(tokens)[0], wanted)
        with pytest.raises((TypeError, ValueError)), computed_in_float32([module]):
            module()
        after = {name: (id(t), t.data_ptr()) for name, t in module.named_parameters()}
        assert before == after
        assert module.dtype == torch.bfloat16


SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
TABLES = {
    "tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=True)),
    "scaled": lambda: Gemma3TextModel(Gemma3TextConfig(**SMALL)),
    "bounded": lambda: nn.Embedding(50, 16, max_norm=0.5),
    "in a list": lambda: nn.Sequential(nn.Embedding(50, 16, padding_idx=1)),
    "multiplied": lambda: VectorQuantizer(50, 16, beta=1.0, sane_index_shape=True),
}


@pytest.mark.parametrize("kind", TABLES)
@torch.no_grad()
def test_an_embedding_computes_in_float32_whatever_is_made_of_it(kind):
    model = TABLES[kind]().eval().to(torch.bfloat16)
    wide = copy.deepcopy(model).float()
    before = {name: (id(t), t.clone()) for name, t in model.named_parameters()}
    given = torch.randn(2, 16, 3, 3) if kind == "multiplied" else torch.arange(6)[None]
    with computed_in_float32([model]):
        found, wanted = model(given), wide(given)
    found, wanted = (one if isinstance(one, torch.Tensor) else one[0] for one in (found, wanted))
    assert torch.equal(found, wanted)
    for name, weight in model.named_parameters():
        assert id(weight) == before[name][0]
        assert torch.equal(weight, before[name][1])


def test_a_prediction_is_of_float32_whatever_the_denoiser_computes_in():
    task: DiffusionTask = build_tiny_task(build_tiny_pipeline().to(torch.float16))
    batch = next(iter(task.forget_batches(0)))
    assert {batch.latents.dtype, task.predict(batch, batch.prompts).dtype} == {torch.float32}
