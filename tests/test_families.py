import pytest
import torch
from hosts import build_tiny_task
from PIL import Image
from tiny_families import BUILDERS, SIDE, build_family

from erase.models.family import family_of
from erase.tasks.diffusion.sampling import draw
from erase.tasks.diffusion.task import DiffusionTask


@pytest.fixture(params=BUILDERS)
def pipeline(request):
    return build_family(request.param)


def test_drawn_latents_are_what_the_denoiser_works_on(pipeline):
    task = build_tiny_task(pipeline, (), SIDE)
    channels = pipeline.vae.config.latent_channels
    for batches in (task.forget_batches(0), task.retain_batches(0)):
        batch = next(iter(batches))
        assert batch.latents.shape == (2, channels, SIDE // 2, SIDE // 2)
        assert task.predict(batch, batch.prompts).shape == batch.latents.shape


@pytest.mark.parametrize("size", [1, 12, 30, 500])
def test_a_size_that_is_not_drawn_is_refused_before_anything_is(pipeline, size):
    with pytest.raises(ValueError, match=rf"size is {size}, .*; give a multiple of 8\.$"):
        build_tiny_task(pipeline, (), size)
    next_up = 8 * (size // 8 + 1)
    assert build_tiny_task(pipeline, (), next_up).denoiser.side == next_up


def test_given_pictures_become_the_latents_that_decode_to_them(pipeline):
    family, task = family_of(pipeline), build_tiny_task(pipeline, (), SIDE)
    noise = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray((255 * noise).byte().numpy())
    given = DiffusionTask(
        pipeline, task.prompts, task.sampling, task.config, forget_pictures=[picture] * 2
    )
    latents = next(iter(given.forget_batches(0))).latents[:1]
    with torch.no_grad():
        moments = pipeline.vae.encode(pipeline.image_processor.preprocess(picture))
    shift = pipeline.vae.config.shift_factor or 0.0
    assert (shift > 0) == (family.name in ("sd3", "flux"))
    decoded = latents / pipeline.vae.config.scaling_factor + shift  # what the pipeline decodes
    assert torch.allclose(decoded, moments.latent_dist.mode(), atol=1e-5)


def test_text_enters_where_the_family_says_and_nowhere_else(pipeline):
    """With what reads the text set to zero, no prompt changes anything."""
    task = build_tiny_task(pipeline, (), SIDE)
    batch = next(iter(task.forget_batches(0)))
    weights = task.editable()
    with torch.no_grad():
        before = [task.predict(batch, [text] * 2) for text in ("a ghost", "skull in ink style")]
        assert not torch.equal(*before)
        for names in task.sites("text").values():
            for name in names:
                weights[name].zero_()
        after = [task.predict(batch, [text] * 2) for text in ("a ghost", "skull in ink style")]
    assert torch.allclose(*after, atol=1e-6)


def test_drawing_is_the_pipelines_own(pipeline):
    family, task = family_of(pipeline), build_tiny_task(pipeline, (), SIDE)
    ours = draw(pipeline, ["a ghost"], [3], task.sampling)
    theirs = pipeline(
        "a ghost", height=SIDE, width=SIDE, generator=torch.Generator().manual_seed(3),
        num_inference_steps=task.sampling.steps, guidance_scale=task.sampling.guidance_scale,
        output_type="pt", **family.drawing,
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_vae_that_names_no_shift_has_none(family):
    task = build_tiny_task(build_family(family), (), SIDE)
    drawn = {}
    for shift in (None, 0.0):
        denoiser, pipeline = task.denoiser, task.denoiser.pipeline
        pipeline.vae.register_to_config(shift_factor=shift)
        pictures = draw(pipeline, ["a ghost"], [3], task.sampling)
        drawn[shift] = torch.cat([pictures, denoiser.pictures(denoiser.latents(pictures))])
        assert pipeline.vae.config.shift_factor == shift
    assert torch.equal(drawn[None], drawn[0.0])


def test_components_of_another_family_are_refused(pipeline):
    with pytest.raises(ValueError, match=r"components name prior.*name some of"):
        build_tiny_task(pipeline, ("prior",), SIDE)
