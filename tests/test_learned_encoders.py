"""Text encoders of learned classes: their gradients are true, they train, and nothing is stale."""

from dataclasses import replace

import pytest
import torch
from hosts import TUNING
from test_learned import SHORT, build_task, require_kept
from tiny_classes import BUILDERS
from transformers import PreTrainedModel

from erase.core.seeds import seeded
from erase.methods import get_method
from erase.methods.esd import ESDConfig
from erase.methods.harden import HardenConfig
from erase.methods.salun import SalUnConfig, saliency
from erase.methods.salun_lora import SalUnLoRAConfig
from erase.models.arguments import OTHER, PROMPT
from erase.models.learned import learned
from erase.models.listening import leaves, same
from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.blank_words import blank_words_
from erase.tasks.diffusion.learned import denoiser_of
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.preserve import only_trainable

# T5; a language model whose pipeline loads LoRA of the denoiser alone; a language model and CLIP.
ALWAYS = ("chroma", "qwen_image", "kandinsky5_t2i")
# Their calls compute no gradients there, detach what it says, or read quoted words alone or
# pictures with it.
UNREACHED = {
    "deepfloyd_if": "text_encoder", "kandinsky3": "text_encoder", "longcat_image": "text_encoder",
    "prx": "text_encoder", "prx_pixel": "text_encoder", "hunyuan_image": "text_encoder_2",
    "hunyuan_image_distilled": "text_encoder_2", "hunyuan_video15": "text_encoder_2",
    "kandinsky22_prior": "image_encoder", "z_image_omni": "siglip",
}  # fmt: skip
CLASSES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.families) for name in BUILDERS
]
STEP = 3e-4  # of a difference, in a float32 whose encoders are 10 to 100 long


def task_of(pipeline, *components) -> DiffusionTask:
    """A task in which these components may change."""
    plain = build_task(pipeline)
    config = replace(plain.config, components=components)
    return DiffusionTask(pipeline, plain.prompts, plain.sampling, config, finetuning=TUNING)


def said(task) -> torch.Tensor:
    """What the denoisers are given for a prompt, along random directions; a scalar in float64."""
    given = leaves(task.condition([PROMPT]).calls).values()
    numbers = [one for one in given if isinstance(one, torch.Tensor) and one.is_floating_point()]
    along = [torch.randn(one.shape, generator=seeded(i)) for i, one in enumerate(numbers)]
    return sum((one * way.to(one)).double().sum() for one, way in zip(numbers, along, strict=True))


@torch.no_grad()
def said_along(task, slopes, length) -> float:
    """The same after the weights went so far along the slopes."""
    own = {name: weight.clone() for name, weight in task.parameters().items()}
    for weight, slope in zip(task.parameters().values(), slopes, strict=True):
        weight.add_(slope, alpha=length)
    found = said(task).item()
    for name, weight in task.parameters().items():
        weight.copy_(own[name])
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_reach_text_encoders_and_are_differences(name):
    pipeline = BUILDERS[name]()
    parts = pipeline.components.items()
    models = {n for n, part in parts if isinstance(part, PreTrainedModel)}
    known = learned(pipeline)
    assert {*known.encoders} == models - {UNREACHED.get(name)}
    assert {*build_task(pipeline).components} == {*known.names}
    for encoder in known.encoders:
        task = task_of(pipeline, encoder)
        weights = [*task.parameters().values()]
        with only_trainable(task, task.parameters()):
            slopes = torch.autograd.grad(
                said(task), weights, allow_unused=True, materialize_grads=True
            )
            task.loss(next(task.forget_batches(0))).backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in weights)
        length = torch.stack([slope.norm() for slope in slopes]).norm().item()
        there, back = (said_along(task, slopes, side * STEP / length) for side in (1, -1))
        assert (there - back) / (2 * STEP) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("name", CLASSES)
def test_trained_text_encoders_are_written_read_and_opened(name, tmp_path):
    pipeline = BUILDERS[name]()
    if not (encoders := learned(pipeline).encoders):
        return
    task = task_of(pipeline, *encoders)
    methods = {"salun": SalUnConfig(training=SHORT), "esd": ESDConfig("all", training=SHORT)}
    if name in ("qwen_image", "kandinsky5_t2i"):  # LoRA edits layers named as CLIP's
        methods["salun_lora"] = SalUnLoRAConfig(rank=2, training=SHORT)
    for method, config in methods.items():
        erasure = get_method(method)(task, config)
        assert {name.partition(".")[0] for name in erasure.deltas} == {*encoders}
        require_kept(pipeline, task, erasure, tmp_path / method)


def kept(denoiser) -> dict:
    """What the denoisers are given for two prompts."""
    with torch.no_grad():
        return leaves(denoiser.condition([PROMPT, OTHER]).calls)


def test_what_was_heard_of_prompts_follows_the_weights_that_read_them():
    pipeline = BUILDERS["chroma"]()
    task = task_of(pipeline, "text_encoder")
    weights, denoiser = task.parameters(), task.denoiser
    base, teacher = task.fingerprints()["base"], task.frozen_copy()
    batch = next(task.forget_batches(0))
    with torch.no_grad():
        wanted = teacher.predict(batch, batch.prompts)
    with only_trainable(task, {}):
        first, again = kept(denoiser), kept(denoiser)
        assert all(first[name] is again[name] for name in first)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, fused=True)  # counts no writing
    for _ in range(2):
        with only_trainable(task, weights):
            task.loss(batch).backward()
            optimizer.step()
            learning = kept(denoiser)
        with only_trainable(task, {}):
            found, fresh = kept(denoiser), kept(denoiser_of(pipeline, Sampling(2, 1.0, 16)))
        assert same(found, fresh)
        assert same(learning, fresh)
        assert not same(found, first)
        first = found
        with torch.no_grad():
            assert torch.equal(teacher.predict(batch, batch.prompts), wanted)
    assert task.fingerprints()["base"] != base


def test_what_was_heard_of_prompts_follows_an_erasure():
    pipeline = BUILDERS["chroma"]()
    task = task_of(pipeline, "text_encoder")
    erasure = get_method("salun")(task, SalUnConfig(training=SHORT))
    with only_trainable(task, {}):
        before = kept(task.denoiser)
        with erasure.apply(pipeline.components):
            erased = kept(task.denoiser)
            assert same(erased, kept(denoiser_of(pipeline, Sampling(2, 1.0, 16))))
            assert not same(erased, before)
        assert same(kept(task.denoiser), before)


def test_mask_passes_hear_each_prompt_once():
    pipeline, heard = BUILDERS["chroma"](), []
    plain = build_task(pipeline)
    config = replace(plain.config, forget_pictures=3, retain_pictures=3, batch_size=1)
    task = DiffusionTask(pipeline, plain.prompts, plain.sampling, config, finetuning=TUNING)
    task.prepare()
    _ = task.denoiser.noising.ladder  # which is heard too, in draws of its own
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: heard.append(1))
    for _ in range(2):
        saliency(task, "fisher_ratio")  # of one prompt in either set
        assert len(heard) == 2
    assert all(weight.requires_grad for weight in pipeline.text_encoder.parameters())


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        pytest.param(*one, marks=() if one[0] == "prx" else pytest.mark.families)
        for one in UNREACHED.items()
    ],
)
def test_text_encoders_that_no_gradients_reach_are_refused(name, encoder):
    with pytest.raises(ValueError, match=rf"name {encoder}, which may not .* no gradients to it"):
        task_of(BUILDERS[name](), encoder)


@pytest.mark.parametrize("adversary", ["prefix", "word", "target", "states"])
def test_no_adversary_is_said_to_serve_a_learned_class_whose_encoder_is_named(adversary):
    task = task_of(BUILDERS["chroma"](), "text_encoder")
    config = replace(task.config, adversary=adversary)
    why = f"The adversary {adversary} cannot serve .*Chroma.*: it .*; leave .*adversary_steps out"
    with pytest.raises(ValueError, match=why):
        config.require_serves(task.family)


@pytest.mark.parametrize("method", ["projection", "uce", "rece", "salun_lora"])
def test_what_edits_no_encoder_of_a_learned_class_says_so_before_any_work(method):
    task = task_of(BUILDERS["chroma"](), "text_encoder")
    asked = []
    task.denoiser.pipeline.transformer.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(ValueError, match=r"text_encoder\b.*; (name|choose|widen) [^,;]*\w") as told:
        get_method(method)(task)
    assert not any(empty in str(told.value) for empty in ("of  ", "of ;", "targets ."))
    assert not asked


@torch.no_grad()
def test_words_that_forget_prompts_alone_hold_are_blanked_in_a_named_encoder_too():
    task = task_of(BUILDERS["chroma"](), "transformer", "text_encoder")
    table = task.components["text_encoder"].get_input_embeddings().weight
    before = table.clone()
    tokens = blank_words_(task)["text_encoder"]
    rows = task.denoiser.pipeline.tokenizer.convert_tokens_to_ids(tokens)
    assert "ghost" in "".join(tokens).replace("\u2581", "")
    assert torch.equal((table != before).any(1).nonzero().flatten(), torch.tensor(sorted(rows)))


def test_a_named_encoder_for_which_nothing_spells_keeps_its_words_or_is_refused():
    task = task_of(BUILDERS["nucleus_moe"](), "transformer", "text_encoder")
    why = "What spells for text_encoder is not known.*; take --harden.words keep, or leave it out"
    with pytest.raises(ValueError, match=why):
        get_method("harden").needs(task, HardenConfig())
    get_method("harden").needs(task, HardenConfig(words="keep"))
