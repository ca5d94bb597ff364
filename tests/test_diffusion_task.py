import copy
import dataclasses

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionLatentUpscalePipeline,
)
from hosts import CATALOGUE, build_tiny_pipeline, build_tiny_task
from PIL import Image
from tiny_families import SIDE, build_family

from erase.methods import methods
from erase.methods.salun import SalUnConfig
from erase.models.opening import load_model
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.noising import FlowNoising
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.loop import TrainingConfig

UPSCALING = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
SMALL = DiffusionTaskConfig(forget_pictures=4, retain_pictures=4, generation_steps=2, batch_size=2)


def build_task(pipeline, request=None, **changes) -> DiffusionTask:
    prompts = expand(request or EraseRequest(["ghost"]), CATALOGUE)
    config = dataclasses.replace(SMALL, **changes)
    return DiffusionTask(pipeline, prompts, CATALOGUE.sampling, config)


def test_a_flow_model_is_noised_along_straight_lines_and_predicts_their_direction(tiny_pipeline):
    tiny_pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noising = FlowNoising(tiny_pipeline.scheduler)
    times = noising.draw_timesteps(1000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < times.median() < times.max() <= 1000
    # A shift of 3 moves the median share of noise from 1/2 to 3/4.
    assert times.median() == pytest.approx(750, abs=40)
    task = build_tiny_task(build_tiny_pipeline())
    batch = dataclasses.replace(
        next(iter(task.forget_batches(0))), timesteps=torch.tensor([0.0, 1000.0])
    )
    noisy = noising.noisy(batch)
    assert torch.equal(noisy[0], batch.latents[0])
    assert torch.equal(noisy[1], batch.noise[1])
    assert torch.equal(noising.target(batch), batch.noise - batch.latents)


def test_pictures_of_a_folder_take_the_place_of_drawn_ones(tiny_pipeline, tmp_path):
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / f"{i}.png")
    task = build_task(tiny_pipeline, forget_folder=str(tmp_path))
    batches = list(task.forget_batches(0))
    assert sum(len(batch.prompts) for batch in batches) == 3
    assert all("ghost" in p or "boo" in p for batch in batches for p in batch.prompts)
    assert batches[0].latents.shape[1:] == (4, 8, 8)
    drawn = build_task(tiny_pipeline)
    assert task.fingerprints()["forget set"] != drawn.fingerprints()["forget set"]
    assert task.fingerprints()["base"] == drawn.fingerprints()["base"]


def test_pictures_are_given_in_any_mode(tiny_pipeline):
    given = [Image.new(mode, (20, 30), 100) for mode in ("L", "P")]
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    task = DiffusionTask(tiny_pipeline, prompts, CATALOGUE.sampling, forget_pictures=given)
    assert next(iter(task.forget_batches(0))).latents.shape == (2, 4, 8, 8)


def test_a_pipeline_of_another_family_is_refused(tiny_pipeline, tmp_path):
    upscaling = StableDiffusionLatentUpscalePipeline(
        **{name: getattr(tiny_pipeline, name) for name in UPSCALING}
    )
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    said = "is a StableDiffusionLatentUpscalePipeline, of no known family"
    with pytest.raises(ValueError, match=said):
        DiffusionTask(upscaling, prompts, CATALOGUE.sampling)
    upscaling.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        load_model(str(tmp_path))


def test_pictures_can_be_given_of_one_concept_only(tiny_pipeline, tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="one concept only"):
        build_task(tiny_pipeline, EraseRequest(["ghost", "pizza"]), forget_folder=str(tmp_path))


def test_a_flow_model_is_erased_end_to_end(tiny_pipeline):
    tiny_pipeline.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    task = build_task(tiny_pipeline)
    assert isinstance(task.denoiser.noising, FlowNoising)
    erasure = methods()["salun"](task, SalUnConfig(training=TrainingConfig(max_train_steps=2)))
    with erasure.apply(tiny_pipeline.components):
        picture = tiny_pipeline("a ghost", num_inference_steps=2, output_type="pt").images
    assert picture.isfinite().all()


def test_a_model_that_predicts_pictures_is_refused(tiny_pipeline):
    with pytest.raises(ValueError, match="prediction_type sample"):
        build_task(build_tiny_pipeline("sample"))


def test_no_key_or_value_to_edit_is_one_sentence(tiny_pipeline):
    for name in ("uce", "rece", "projection"):
        with pytest.raises(ValueError, match="widen include"):
            methods()[name](build_task(tiny_pipeline, include=("*attn1*",)))


def test_a_mask_that_keeps_nothing_is_refused(tiny_pipeline):
    config = SalUnConfig(density=1e-9, training=TrainingConfig(max_train_steps=1))
    with pytest.raises(ValueError, match="keeps none of"):
        methods()["salun"](build_task(tiny_pipeline), config)


def test_an_empty_folder_and_broken_pictures_are_refused_before_any_work(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        build_task(tiny_pipeline, forget_folder=str(tmp_path))
    (tmp_path / "broken.png").write_text("not a picture")
    with pytest.raises(ValueError, match="cannot be read"):
        build_task(tiny_pipeline, forget_folder=str(tmp_path))


def test_patterns_choose_the_tensors_that_may_change(tiny_pipeline):
    task = build_task(tiny_pipeline, include=("*attn2*",), exclude=("*bias",))
    names = list(task.parameters())
    assert names
    assert all("attn2" in name and not name.endswith("bias") for name in names)
    with pytest.raises(ValueError, match="widen the patterns"):
        build_task(tiny_pipeline, include=("*nothing*",))


def test_fused_attention_is_refused(tiny_pipeline):
    tiny_pipeline.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        build_task(tiny_pipeline)


def test_anchor_pictures_go_with_forget_prompts(tiny_pipeline):
    task = build_task(tiny_pipeline)
    anchors = task.with_anchor_pictures()
    own, other = (next(iter(t.forget_batches(0))) for t in (task, anchors))
    assert own.prompts == other.prompts
    assert not torch.equal(own.latents, other.latents)
    assert torch.equal(next(iter(task.forget_batches(0))).latents, own.latents)


def test_random_redirects_differ_from_prompt_to_prompt_and_repeat_with_the_seed():
    request = EraseRequest(["ghost"], redirect="random")
    one, two = (expand(request, CATALOGUE).forget for _ in "ab")
    assert one == two
    assert len({prompt.anchor.split(" in ")[0] for prompt in one}) > 1
    assert not any("ghost" in prompt.anchor for prompt in one)
    with pytest.raises(ValueError, match="no room for anchors"):
        EraseRequest(["ghost"], anchors=["skull"], redirect="random")


@pytest.mark.parametrize("family", ["sdxl", "flux"])  # guided, and not
def test_saliency_is_of_the_prompts_alone(family):
    task = build_tiny_task(build_family(family), (), SIDE)
    batch = next(iter(task.forget_batches(0)))
    plain = task.saliency_loss(batch)
    task.config = dataclasses.replace(task.config, adversary_steps=2)
    assert torch.equal(task.saliency_loss(batch), plain)
    assert not torch.equal(task.loss(batch), plain)


def test_listening_hears_every_site_of_a_target(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, ("unet", "text_encoder"))
    for target in task.targets:
        heard = {}
        task.record_inputs("forget", target, lambda s, rows, g, h=heard: h.setdefault(s, rows), 2)
        sites, parameters = task.sites(target), task.editable()
        assert heard.keys() == sites.keys()
        for site, names in sites.items():
            for name in names:
                assert parameters[name].flatten(1).shape[1] == heard[site].shape[-1], name
    with pytest.raises(ValueError, match="no target"):
        task.sites("nothing")


def heard_by(task) -> dict:
    """Everything that is read at each place of every target, in order."""
    heard = {}
    for target in task.targets:

        def keep(site, rows, group, target=target):
            heard.setdefault((target, site), []).append(rows)

        task.record_inputs("forget", target, keep, 2)
    return {place: torch.cat(rows) for place, rows in heard.items()}


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_frozen_copy_is_of_the_model_as_it_was_in_all_that_it_does(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, ("unet", "text_encoder"))
    frozen, batch = task.frozen_copy(), next(iter(task.forget_batches(0)))

    def done_by(one) -> dict:
        with torch.no_grad():
            loss = one.loss(batch)
        return heard_by(one) | {"preview": one.preview(), "loss": loss}

    before = done_by(task)
    assert same_tensors(done_by(frozen), before)
    with torch.no_grad():
        for parameter in task.parameters().values():
            parameter.mul_(1.5)
    assert same_tensors(done_by(frozen), before)
    after = done_by(task)
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[key], before[key]) for key in ("preview", "loss"))


def test_modules_that_stand_in_are_heard_and_edited(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, ("unet", "text_encoder"))
    before = heard_by(task)
    copies = {name: copy.deepcopy(module) for name, module in task.components.items()}
    with task.replaced_modules(copies):
        assert same_tensors(heard_by(task), before)
        own = {id(p) for module in copies.values() for p in module.parameters()}
        assert {id(p) for p in task.editable().values()} <= own
