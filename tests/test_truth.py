"""What a task learns on is what its pipeline draws with, or it is refused."""

import copy

import diffusers
import pytest
import torch
from hosts import CATALOGUE
from tiny_families import BUILDERS, SIDE, T5_WIDTH, WIDTH, build_family

from erase.models.family import family_of
from erase.models.tokens import pairing
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.sampling import draw
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

SAMPLING = Sampling(3, 2.0, SIDE)


def build_task(pipeline, **request) -> DiffusionTask:
    prompts = expand(EraseRequest(["ghost"], **request), None if request else CATALOGUE)
    config = DiffusionTaskConfig(forget_pictures=2, retain_pictures=2, generation_steps=2)
    return DiffusionTask(pipeline, prompts, SAMPLING, config)


def with_new_word(pipeline):
    """ "<boo>" is four vectors in every text encoder that can learn a word."""
    torch.manual_seed(1)
    encoders = [("tokenizer", "text_encoder", WIDTH)]
    if "unet" in pipeline.components and "tokenizer_2" in pipeline.components:
        encoders.append(("tokenizer_2", "text_encoder_2", WIDTH))
    if isinstance(pipeline, diffusers.FluxPipeline):
        encoders = [("tokenizer_2", "text_encoder_2", T5_WIDTH)]
    for tokenizer, encoder, width in encoders:
        setattr(pipeline, tokenizer, copy.deepcopy(getattr(pipeline, tokenizer)))
        pipeline.load_textual_inversion(
            {"<boo>": torch.randn(4, width)}, token="<boo>",
            tokenizer=getattr(pipeline, tokenizer), text_encoder=getattr(pipeline, encoder),
        )  # fmt: skip
    return pipeline


def distilled(pipeline):
    """Its UNet is told the guidance scale, as a latent consistency model's is."""
    config = {n: v for n, v in pipeline.unet.config.items() if not n.startswith("_")}
    torch.manual_seed(0)
    pipeline.unet = diffusers.UNet2DConditionModel(**config | {"time_cond_proj_dim": 8}).eval()
    return pipeline


PIPELINES = {name: lambda name=name: build_family(name) for name in BUILDERS} | {
    "sd1 distilled": lambda: distilled(build_family("sd1")),
    "sdxl distilled": lambda: distilled(build_family("sdxl")),
    "sd1 with a word": lambda: with_new_word(build_family("sd1")),
    "sdxl with a word": lambda: with_new_word(build_family("sdxl")),
    "flux with a word": lambda: with_new_word(build_family("flux")),
}


def heard(pipeline, task, text) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Latents, time steps and answers of the denoiser in a real call of the pipeline."""
    calls = []

    def keep(module, args, given, output):
        named = dict(zip(("sample", "timestep"), args, strict=False)) | given
        latents = named.get("hidden_states", named.get("sample"))
        calls.append((latents, torch.as_tensor(named["timestep"]).float(), output[0]))

    handle = getattr(pipeline, task.family.denoiser).register_forward_hook(keep, with_kwargs=True)
    draw(pipeline, [text], [0], task.sampling)
    handle.remove()
    return calls


@pytest.mark.parametrize("text", ["a picture of <boo>, a Ghost", "many small things " * 40])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_task_predicts_what_the_denoiser_answers_in_the_pipelines_own_call(name, text):
    pipeline = PIPELINES[name]()
    task, packed = build_task(pipeline), name.startswith("flux")
    prompts = ["", text] if task.denoiser.guided else [text]
    calls = heard(pipeline, task, text)
    with torch.no_grad():
        condition = task.condition(prompts)
        for latents, time, answer in calls:
            if packed:
                time = 1000 * time
                latents, answer = (
                    task.family.unpacked(pipeline, x, SIDE) for x in (latents, answer)
                )
            found = task.denoiser.predict(latents, time.expand(len(latents)), condition)
            assert torch.allclose(found, answer[:, : found.shape[1]], atol=1e-5)
    assert len(calls) == task.sampling.steps


@pytest.mark.parametrize("name", [n for n in PIPELINES if "distilled" not in n])
def test_tokens_are_paired_with_their_equals_as_the_pipeline_spells_them(name):
    pipeline = PIPELINES[name]()
    denoiser = ConditionedDenoiser(pipeline, SIDE, 2.0)
    family = denoiser.family
    texts, anchors = "a <boo> in the Wood", "a tree in the Wood"
    read = {text: [] for text in (texts, anchors)}
    for tokenizer, _ in family.readers:
        encoder = getattr(pipeline, tokenizer.replace("tokenizer", "text_encoder"))
        for text, parts in read.items():
            handle = encoder.register_forward_pre_hook(
                lambda module, inputs, parts=parts: parts.append(inputs[0][0])
            )
            denoiser.condition([text])
            handle.remove()
    ours, instead = (torch.cat(parts) for parts in read.values())
    pairs = pairing(pipeline, family.readers, [texts], [anchors])[0]
    unlike = (ours != instead[pairs]).nonzero().flatten()
    assert len(pairs) == len(ours)
    learnt = 4 if "word" in name else 5  # letters at most
    assert 0 < len(unlike) <= learnt * len(family.readers)


SCHEDULERS = {
    kind.__name__: lambda kind=kind: kind()
    for kind in (
        diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.DPMSolverMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler, diffusers.EulerAncestralDiscreteScheduler,
        diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler, diffusers.KDPM2DiscreteScheduler,
        diffusers.LCMScheduler, diffusers.LMSDiscreteScheduler, diffusers.PNDMScheduler,
        diffusers.TCDScheduler, diffusers.UniPCMultistepScheduler, diffusers.DEISMultistepScheduler,
        diffusers.CogVideoXDDIMScheduler,
    )
} | {
    "scaled betas": lambda: diffusers.LCMScheduler.from_config(
        diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        .config
    ),
    "trained betas": lambda: diffusers.DDIMScheduler(
        trained_betas=torch.linspace(1e-3, 0.03, 1000).tolist()
    ),
    "v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction"),
    "zero terminal SNR": lambda: diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "Euler, zero terminal SNR": lambda: diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "Karras": lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow, Euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "flow, shifted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, Heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "flow, DPM": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "flow, UniPC": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_denoiser_that_hits_the_training_target_leads_the_pipeline_to_the_picture(name):
    """Who answers of every noised picture what training asks, of one, draws that one."""
    pipeline = build_family("sd3" if name.startswith("flow,") and "M" not in name else "sd1")
    pipeline.scheduler = SCHEDULERS[name]()
    noising = ConditionedDenoiser(pipeline, SIDE).noising
    picture = 2 * torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) - 1

    def answer(module, args, given, output):
        latents = args[0] if args else given["hidden_states"]
        time = torch.as_tensor(args[1] if args else given["timestep"]).float()
        clean, steps = picture.expand(len(latents), -1, -1, -1), time.expand(len(latents))
        batch = DiffusionBatch(clean, torch.zeros_like(clean), steps, [], [])
        pure = DiffusionBatch(0 * clean, torch.ones_like(clean), steps, [], [])
        noise = (latents - noising.noisy(batch)) / noising.noisy(pure)
        return (noising.target(DiffusionBatch(clean, noise, steps, [], [])),)

    denoiser = getattr(pipeline, family_of(pipeline).denoiser)
    denoiser.register_forward_hook(answer, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a ghost", num_inference_steps=12, output_type="latent", height=SIDE, width=SIDE,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    # Some end at the first time step's own noise, not at none.
    assert (drawn - picture).square().mean().sqrt() < 0.06


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: diffusers.EDMEulerScheduler(),
        lambda: diffusers.DDIMScheduler(prediction_type="sample"),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
        lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
        lambda: diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous"
        ),
    ],
)
def test_noise_that_is_not_known_is_refused(scheduler, tiny_pipeline):
    tiny_pipeline.scheduler = scheduler()
    with pytest.raises(ValueError, match=r"scheduler has|is not known as it is set up"):
        build_task(tiny_pipeline)


def _tiny_autoencoder():
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip


def with_vae(family, **changes):
    pipeline = build_family(family)
    pipeline.vae.register_to_config(**changes)
    return pipeline


def with_tiny_autoencoder(family):
    pipeline = build_family(family)
    pipeline.vae = _tiny_autoencoder()
    return pipeline


VAES = {name: lambda name=name: build_family(name) for name in BUILDERS} | {
    "sd1 of another scale": lambda: with_vae("sd1", scaling_factor=0.5),
    "sd1 with a shift it does not know": lambda: with_vae("sd1", shift_factor=0.3),
    "sdxl by channel": lambda: with_vae(
        "sdxl", latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]
    ),
    "sd1, tiny": lambda: with_tiny_autoencoder("sd1"),
    "sd3, tiny": lambda: with_tiny_autoencoder("sd3"),
}


@pytest.mark.parametrize("name", VAES)
def test_latents_are_those_that_the_pipeline_decodes(name):
    pipeline = VAES[name]()
    latents, shown = (draw(pipeline, ["a ghost"], [3], SAMPLING, kind) for kind in ("latent", "pt"))
    denoiser = ConditionedDenoiser(pipeline)
    assert torch.allclose(denoiser.pictures(latents), shown, atol=1e-5)
    with torch.no_grad():
        found = pipeline.vae.encode(2 * shown - 1)
        code = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        again = (pipeline.vae.decode(code).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(denoiser.pictures(denoiser.latents(shown)), again, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_concept_beyond_what_is_read_is_refused(name):
    filler = "a very long picture of many small things in a big room with " * 60
    request = {"anchors": ["skull"], "retain": ["pizza"]}
    with pytest.raises(ValueError, match=r"beyond the .* tokens that are read of a prompt"):
        build_task(build_family(name), templates=[filler + "{concept}"], **request)
    build_task(build_family(name), templates=["{concept} in " + filler], **request)
