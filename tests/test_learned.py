"""What pipelines of classes that no family knows tell of themselves, and how they forget."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from hosts import TUNING
from PIL import Image, ImageDraw
from tiny_classes import BUILDERS, glm_image, unclip

from erase.bundled import EMOJI
from erase.core.delta import LowRankDelta
from erase.core.names import named_parameters
from erase.core.seeds import seeded
from erase.erasure.erasure import Erasure
from erase.erasure.weights import LORA
from erase.methods import get_method
from erase.methods.concept_ablation import ConceptAblationConfig
from erase.methods.esd import ESDConfig
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.methods.salun_lora import SalUnLoRAConfig
from erase.methods.uce import UCEConfig
from erase.models.arguments import OTHER, PROMPT
from erase.models.coding import on_white, shown
from erase.models.cuts import cut_out
from erase.models.learned import learn, learned
from erase.models.listening import leaves, raw_of, same
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.learned import FURTHER, paired_rows
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.sampling import draw
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainingConfig

# Of each kind one: double and single blocks, a single stream of lists, two denoisers and frames,
# fused layers, a table of words, a crop, pictures, velocities, noise, and levels without a table.
TEN = (
    "chroma", "z_image", "wan", "krea2", "omnigen", "dreamlite", "prx_pixel", "hunyuan_dit",
    "pixart_alpha", "sana_sprint",
)  # fmt: skip
TWICE = (HeunDiscreteScheduler, KDPM2DiscreteScheduler)  # all steps but the last have two calls
SCALING = (
    EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, LMSDiscreteScheduler, *TWICE,
)  # fmt: skip
# They draw no pictures but what another pipeline decodes.
PRIORS = ("stable_cascade_prior", "wuerstchen_prior", "kandinsky22_prior")
SHORT = TrainingConfig(1)
METHODS = {
    "projection": ProjectionConfig(samples=4),
    "uce": UCEConfig(prompts=4),
    "salun": SalUnConfig(training=SHORT),
    "esd": ESDConfig(training=SHORT),
    "salun_lora": SalUnLoRAConfig(rank=2, training=SHORT),
    "concept_ablation": ConceptAblationConfig(training=SHORT),
}
CLASSES = [
    pytest.param(name, marks=() if name in TEN else pytest.mark.families) for name in BUILDERS
]


def build_task(pipeline, templates=("a {concept}",)) -> DiffusionTask:
    side = learned(pipeline).calling.smallest.get("height", 0)
    request = EraseRequest(["ghost"], anchors=["pizza"], retain=["dog"], templates=templates)
    config = DiffusionTaskConfig(
        forget_pictures=1, retain_pictures=1, generation_steps=2, batch_size=2, size=side
    )
    sampling = Sampling(2, 1.0, side)
    return DiffusionTask(pipeline, expand(request, None), sampling, config, finetuning=TUNING)


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_learned_is_what_the_pipeline_does(name, tmp_path):
    pipeline = BUILDERS[name]()
    known, task = learned(pipeline), build_task(pipeline)
    with torch.no_grad():
        _require_truth(pipeline, known, task)
    some = ("projection", "salun") if name in TEN else METHODS
    _require_forgetting(pipeline, task, some, tmp_path)


@pytest.mark.parametrize("scheduler", SCALING)
def test_levels_are_learned_where_the_scheduler_scales_what_is_read(scheduler):
    pipeline = BUILDERS["pixart_alpha"]()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    known = learned(pipeline)
    assert known.predicts == "noise"
    with torch.no_grad():
        _require_truth(pipeline, known, build_task(pipeline))


# They keep parts in float32 where `from_pretrained` opens them, and can't draw after `to`.
OPENED = ("kandinsky5_t2i", "kandinsky5_t2v", "hidream")
HALVES = ("stable_cascade_prior", "qwen_image", "wan")  # lists in lists, packed latents, two


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in HALVES else pytest.mark.families) for n in BUILDERS]
)
def test_half_precision_is_learned_and_forgets(name, tmp_path):
    if name in OPENED:
        BUILDERS[name]().save_pretrained(tmp_path)
        pipeline = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    else:
        pipeline = BUILDERS[name]().to(torch.bfloat16)
    task = build_task(pipeline)
    weights = {n: w.clone() for n, w in named_parameters(task.components).items()}
    for method in ("projection", "salun") if task.family.enters else ("salun",):
        assert get_method(method)(task, METHODS[method]).deltas
    assert all(torch.equal(w, weights[n]) for n, w in named_parameters(task.components).items())


def _require_truth(pipeline, known, task) -> None:
    """Calls made again and training samples at the levels of a draw are answered as in the draw."""
    noising = task.denoiser.noising
    ladder, side = noising.ladder, task.sampling.size
    steps = len(ladder.levels)
    asked = (steps + 1) // 2 if isinstance(pipeline.scheduler, TWICE) else steps
    drawn = task.denoiser.listener(side).draw(PROMPT, num_inference_steps=asked)
    calls = [call for call in drawn.calls if call.who in known.names]
    each = len(calls) // steps
    condition = task.condition([PROMPT])
    picture = torch.randn(ladder.shape, generator=torch.Generator().manual_seed(3))
    for place in (0, steps // 2, steps - 1):
        call, level = calls[place * each + known.call], ladder.levels[place]
        assert same(raw_of(getattr(pipeline, call.who)(**call.arguments)), call.raw)
        latents = cut_out(leaves(call.arguments)[ladder.latents], ladder.places[0])
        noise = (latents.reshape(ladder.shape) - level.clean * picture) / level.noise
        batch = DiffusionBatch(
            picture, noise / ladder.deviation, torch.tensor([place]), [PROMPT], [OTHER]
        )
        found = task.denoiser.predict(noising.noisy(batch), batch.timesteps, condition)
        heard = cut_out(call.raw, ladder.prediction).reshape(ladder.shape)
        assert torch.allclose(found, heard, atol=1e-4, rtol=1e-4)
        # What is said in truth of a picture and noise leads to both at any other level.
        truth, far = noising.target(batch), replace(batch, timesteps=torch.tensor([steps - 1]))
        moved = noising.moved(noising.noisy(batch), truth, place, steps - 1)
        assert torch.allclose(moved, noising.noisy(far), atol=1e-3, rtol=1e-3)


def _require_forgetting(pipeline, task, methods, folder) -> None:
    """Each method forgets, or says why no text enters by a weight of its kind."""
    for name in methods:
        if name in ("projection", "uce", "salun_lora") and not task.family.enters:
            with pytest.raises(ValueError, match=r"reads the text itself|that LoRA can edit"):
                get_method(name)(task, METHODS[name])
            continue
        require_kept(pipeline, task, get_method(name)(task, METHODS[name]), folder / name)


def require_kept(pipeline, task, made, folder) -> None:
    """An erasure is the same after it was written, and in a model that was saved."""

    def drawn():
        return draw(pipeline, [PROMPT], [0], task.sampling, "latent")

    before = drawn()
    made.save_pretrained(folder)
    erasure = Erasure.from_pretrained(folder)
    assert erasure.recipe["base"]["learned"]["pipeline"] == task.family.name
    with erasure.apply(pipeline.components) as applied:
        erased = drawn()
        for part, module in applied.modules.items():
            module.save_pretrained(folder / part)
    assert not torch.equal(erased, before)
    assert torch.equal(drawn(), before)
    lora = (folder / LORA).exists()
    low_rank = all(isinstance(delta, LowRankDelta) for delta in erasure.deltas.values())
    assert lora == (low_rank and task.architecture()["loads_lora"])
    if lora:
        pipeline.load_lora_weights(folder)
        assert torch.allclose(drawn(), erased, atol=1e-5)
        pipeline.unload_lora_weights()
        assert torch.equal(drawn(), before)
    with task.replaced_modules(_opened(folder, applied.modules)):
        assert torch.equal(drawn(), erased)


def _opened(folder, modules):
    """The components that plain diffusers reads of a folder."""
    found = {
        part: type(m).from_pretrained(folder / part, torch_dtype=m.dtype).eval()
        for part, m in modules.items()
    }
    for module in found.values():
        for weight in module.parameters():  # sums differ where memory is aligned in another way
            weight.data = weight.data.clone()
    return found


@pytest.mark.parametrize("method", ["salun", "esd"])
def test_blocks_that_text_and_picture_share_change_only_where_they_are_named(method):
    task = build_task(BUILDERS["z_image"]())
    shared = [name for name in task.editable() if name.startswith("transformer.layers.")]
    config = ESDConfig("all", training=SHORT) if method == "esd" else METHODS[method]
    task.config = replace(task.config, include=task.family.reads_text)
    text_alone = get_method(method)(task, config)
    task.config = replace(task.config, include=("transformer.layers.*",))
    blocks = get_method(method)(task, config)
    assert text_alone.deltas
    assert not set(text_alone.deltas) & set(shared)
    assert blocks.deltas
    assert set(blocks.deltas) <= set(shared)


@pytest.mark.families
def test_a_model_that_draws_words_of_its_own_first_is_refused():
    with pytest.raises(ValueError, match=r"GlmImagePipeline, of no known family.*prior_token_id"):
        learned(glm_image())


def test_a_pipeline_that_draws_in_stages_is_refused_with_their_names():
    with pytest.raises(ValueError, match=r"one after another \(prior_scheduler, decoder_scheduler"):
        learned(unclip())


def test_steps_that_leave_the_schedulers_table_are_heard_at_a_count_that_does_not():
    """1000 times are no multiple of 24 or 12 steps."""
    pipeline = BUILDERS["pixart_alpha"]()
    pipeline.scheduler = DDIMScheduler(timestep_spacing="trailing")
    known = learned(pipeline)
    assert known.predicts == "noise"
    with torch.no_grad():
        _require_truth(pipeline, known, build_task(pipeline))


def test_a_copy_of_the_scheduler_steps_by_itself_and_is_not_heard():
    pipeline = BUILDERS["kandinsky6"]()  # it steps sound by a copy
    listener = learned(pipeline).calling.listener(pipeline, sample_audio=True)
    draw = listener.draw(PROMPT)
    assert len(draw.samples) == listener.options["num_inference_steps"]
    assert {sample.ndim for sample in draw.samples} == {5}


def test_what_can_not_be_heard_is_refused():
    with pytest.raises(ValueError, match="Which token is a prompt's last is not known"):
        build_task(BUILDERS["chroma"]()).last_readings([PROMPT])


def given_task(pipeline, picture) -> DiffusionTask:
    """A task on a picture of the concept that is given."""
    task = build_task(pipeline)
    return DiffusionTask(pipeline, task.prompts, task.sampling, task.config,
                         forget_pictures=[picture], finetuning=TUNING)  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_pictures_of_ones_own_are_decoded_as_they_were_coded(name):
    pipeline, noise = BUILDERS[name](), torch.rand(40, 50, 3, generator=seeded(0))
    picture = Image.fromarray((255 * noise).byte().numpy())
    if name in PRIORS:
        with pytest.raises(ValueError, match=r"PriorPipeline codes pictures is not known: "):
            given_task(pipeline, picture)
        return
    task = given_task(pipeline, picture)
    denoiser = task.denoiser
    ready, coding = denoiser.ready(picture)[0], denoiser.coding
    _, latents = task._sets.forget
    assert latents.shape == draw(pipeline, [PROMPT], [0], task.sampling, "latent").shape
    with torch.no_grad():
        said = coding.encoded(pipeline, ready)
        plainly = {"force_not_quantize": True} if name == "kandinsky3" else {}
        said = getattr(pipeline, coding.coder).decode(said, **plainly)[0] if coding.coder else said
    frames = said[0].movedim(0 if said.shape[1] < 5 else 1, 1) if said.ndim == 5 else said
    wanted = on_white((frames / 2 + 0.5).clamp(0, 1))[len(denoiser_frames(denoiser)) // 2]
    rounded = name == "cosmos2_t2i"  # its guard sees pictures in 8 bits
    near = 5e-3 if rounded else 1e-4
    assert torch.allclose(denoiser.pictures(latents)[0], wanted, atol=near)
    if name in TEN:
        assert get_method("salun")(task, METHODS["salun"]).deltas


def denoiser_frames(denoiser):
    """The frames of what it draws."""
    return shown(denoiser.listener(denoiser.side).draw(PROMPT, output_type="np").output)


def test_with_a_trained_coder_a_picture_of_ones_own_comes_back():
    pipeline = BUILDERS["chroma"]()  # its latents are packed, scaled and shifted
    vae = AutoencoderKL.from_pretrained(EMOJI / "vae").eval()
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.3)
    config = {**pipeline.transformer.config, "in_channels": 32, "out_channels": None}
    denoiser = ChromaTransformer2DModel.from_config(config).eval()
    pipeline = ChromaPipeline(**{**pipeline.components, "vae": vae, "transformer": denoiser})
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((12, 20, 50, 54), fill=(220, 160, 40))
    config = DiffusionTaskConfig(size=64, retain_pictures=1)
    sampling = Sampling(2, 1.0, 64)
    task = DiffusionTask(pipeline, build_task(BUILDERS["chroma"]()).prompts, sampling, config,
                         forget_pictures=[picture])  # fmt: skip
    _, latents = task._sets.forget
    shown, wanted = task.denoiser.pictures(latents), task.denoiser.ready(picture)
    assert (shown - wanted).square().mean() < 1e-3


def test_training_what_text_and_picture_share_is_warned_of(caplog):
    task = build_task(BUILDERS["z_image"]())
    get_method("esd")(task, METHODS["esd"])
    assert "collapse" not in caplog.text
    shared = replace(task.config, include=["transformer.layers.*", "transformer.cap_embedder.*"])
    task = DiffusionTask(
        task.denoiser.pipeline, task.prompts, task.sampling, shared, finetuning=TUNING
    )
    get_method("projection")(task, METHODS["projection"])
    assert "collapse" not in caplog.text  # it edits what text alone passes
    get_method("salun")(task, METHODS["salun"])
    assert "30 of the 33 tensors that train hear pictures too: transformer.layers" in caplog.text
    assert "training can collapse all that a ZImagePipeline draws" in caplog.text


ALL_NOISE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("name", "scheduler", "changed", "said"),
    [
        ("pixart_alpha", DPMSolverMultistepScheduler, {}, "noise"),
        ("hunyuan_dit", EulerDiscreteScheduler, {}, "v"),
        # It adds up velocities of several levels, so that what they lead to is no picture.
        ("hunyuan_dit", PNDMScheduler, {}, None),
        ("pixart_alpha", DDIMScheduler, ALL_NOISE, None),  # no noise is predicted there
    ],
)
def test_with_another_scheduler_a_pipeline_is_learned_as_what_it_is_or_refused(
    name, scheduler, changed, said
):
    pipeline = BUILDERS[name]()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changed)
    if said:
        assert learn(pipeline).predicts == said
    else:
        with pytest.raises(ValueError, match="no known family, and none could be learned of it"):
            learn(pipeline)


def test_prompts_that_are_filled_up_to_a_multiple_are_read_together():
    denoiser = build_task(BUILDERS["cogview4"]()).denoiser
    prompts = [PROMPT, FURTHER]
    for site, rows in denoiser.readings(prompts).items():
        alone = [denoiser.readings([prompt])[site].flatten(0, 1) for prompt in prompts]
        assert len(alone[0]) < len(alone[1])
        assert torch.equal(rows.flatten(0, 1), torch.cat(alone))


def test_what_is_learned_is_told_and_kept_as_json():
    known = learned(BUILDERS["chroma"]())
    assert json.loads(json.dumps(known.as_json()))["predicts"] == "velocity"
    assert "transformer.context_embedder.weight" in str(known)


def test_rows_are_paired_in_order_with_those_most_like_them():
    rows = torch.eye(6)
    two_words = torch.stack([rows[0], rows[1] + 0.1 * rows[3], rows[1] + 0.2 * rows[3], rows[2]])
    assert paired_rows(rows[[0, 1, 2, 4]], rows[[0, 3, 2, 4]]).tolist() == [0, 1, 2, 3]
    assert paired_rows(rows[:3], two_words).tolist() == [0, 2, 3]
    assert paired_rows(two_words, rows[:3]).tolist() == [0, 1, 1, 2]
