"""Every attack on every learned class: it works there, or says in a sentence why it does not."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from diffusers import PNDMScheduler
from test_learned import BUILDERS, METHODS, build_task

from erase.attacks import attacks, serving
from erase.attacks.base import Target, predict_base
from erase.attacks.concept_inversion import ConceptInversionConfig, LongInversionConfig
from erase.attacks.latent_inversion import LatentInversionConfig
from erase.attacks.p4d import P4DConfig
from erase.attacks.prefix import PrefixConfig
from erase.attacks.recall import RecallConfig
from erase.attacks.relearning import RelearningConfig
from erase.attacks.ring_a_bell import RingABellConfig
from erase.attacks.state_inversion import StateInversionConfig
from erase.core.names import named_parameters
from erase.methods import get_method
from erase.models.arguments import OTHER, PROMPT
from erase.models.levels import STEPS
from erase.models.listening import leaves, same
from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.heard_states import states_of
from erase.tasks.diffusion.led import Led
from erase.tasks.diffusion.sampling import draw
from erase.tasks.diffusion.words import (
    placeholder_embeddings,
    placeholders,
    tokenizer_of,
    vocabularies,
)

# Lists in a single stream; two denoisers and frames; a CLIP text encoder beside another.
ALWAYS = ("z_image", "wan", "kandinsky5_t2i")
WITH_CLIP = (
    "kandinsky5_t2i", "kandinsky5_t2v", "hidream", "hunyuan_video", "stable_cascade_prior",
    "kandinsky6", "wuerstchen_prior", "kandinsky22_prior", "latent_consistency",
)  # fmt: skip
SEARCHES = ("concept_inversion", "concept_inversion_of_four", "p4d", "prefix", "ring_a_bell")
NO_CLIP = r"it searches words in CLIP text encoders, of which it has none; state_inversion learns"
WORDLESS = r"it reads no word as a state of its own"  # OmniGen, by its table of words
SHORT = {
    "relearning": RelearningConfig(2, 2, 1, 1e-2),
    "benign_relearning": RelearningConfig(2, 2, 1, 1e-2),
    "concept_inversion": ConceptInversionConfig(1, 2, 2),
    "concept_inversion_of_four": LongInversionConfig(4, 2, 2),
    "p4d": P4DConfig(3, 2, 2),
    "prefix": PrefixConfig(2, 2, 2),
    "ring_a_bell": RingABellConfig(3, population=4, generations=1),
    "latent_inversion": LatentInversionConfig(6),
    # Far enough for the pictures of Cosmos2, which come in 8 bits.
    "state_inversion": StateInversionConfig(1, 2, 2, 1e3),
}
CLASSES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.families) for name in BUILDERS
]
DRAWING = [one for one in CLASSES if one.values[0] != "kandinsky22_prior"]


def target_of(task, seen) -> Target:
    """A target that notes what it drew, and never shows the concept."""
    pipeline, side, prompts = task.denoiser.pipeline, task.sampling.size, task.prompts.forget

    def shows(pictures: torch.Tensor, asked) -> list[bool]:
        seen.append(pictures)
        return [False] * len(asked)

    coded = tuple(
        draw(pipeline, [prompt.text], [0], task.sampling, "latent")
        for prompt in (prompts[0], task.prompts.retain[0])
    )
    memory = predict_base(task.denoiser, coded[0], [prompts[0].text], 0)
    benign, pictures = [task.prompts.retain[0].text], torch.zeros(1, 3, side, side)
    return Target(task.denoiser, prompts[:1], pictures, shows, task.sampling,
                  (benign, pictures), memory, coded=coded)  # fmt: skip


@pytest.mark.families
def test_no_attack_is_judged_by_what_is_no_picture():
    target = target_of(build_task(BUILDERS["kandinsky22_prior"]()), [])
    with pytest.raises(ValueError, match=r"is no picture but \(1, 256\) numbers, of which another"):
        target.drawn()


@pytest.mark.parametrize("name", DRAWING)
def test_every_attack_works_on_a_learned_class_or_says_why_not(name):
    pipeline, seen = BUILDERS[name](), []
    task = build_task(pipeline)
    method = "projection" if task.family.enters else "salun"
    erasure = get_method(method)(task, METHODS[method])
    target = target_of(task, seen)
    refused = {} if name in WITH_CLIP else dict.fromkeys(SEARCHES, NO_CLIP)
    refused |= {"state_inversion": WORDLESS} if name == "omnigen" else {}
    assert {*refused, *serving(task.family)} == {*attacks()}
    assert not {*refused} & {*serving(task.family)}
    for attack, why in refused.items():
        with pytest.raises(ValueError, match=f"{attack} cannot serve a .*: {why}.*; choose of"):
            attacks()[attack](target)
    with erasure.apply(pipeline.components):
        before = {n: w.clone() for n, w in named_parameters(task.components).items()}
        for attack in serving(task.family):
            seen.clear()
            outcome = attacks()[attack](target, SHORT.get(attack))
            assert set(outcome.details.get("curve", {0, 2})) == {0, 2}
            # What was learnt is drawn, and nothing of it stays.
            plain = target.drawn()
            assert plain.std() == 0 or not torch.equal(plain, seen[-1])  # a tiny VAE may draw grey
            for weight, own in named_parameters(task.components).items():
                assert torch.equal(own, before[weight])


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_led_to_a_picture_under_any_guidance(name):
    task = build_task(BUILDERS[name]())
    denoiser, target = task.denoiser, target_of(task, [])
    (latents,) = target.latents
    guided = replace(task.sampling, steps=4, guidance_scale=4.0)
    attacks()["recall"].trial(denoiser, guided, RecallConfig())
    with suppress(ValueError):  # a single step may be refused, in a sentence
        attacks()["recall"].trial(denoiser, replace(guided, steps=1), RecallConfig())
    whole, begun = (Led(denoiser, guided, steps).drawn(latents, PROMPT, 7) for steps in (4, 0))
    wanted = denoiser.pictures(latents[None])
    assert torch.equal(begun, draw(task.denoiser.pipeline, [PROMPT], [7], guided))
    assert (whole - wanted).norm() <= 0.1 * (begun - wanted).norm()


def test_what_can_not_be_led_is_refused_before_any_work():
    denoiser, asked = build_task(BUILDERS["hunyuan_dit"]()).denoiser, []
    pipeline = denoiser.pipeline
    pipeline.transformer.blocks[0].register_forward_hook(lambda *_: asked.append(1))
    attacks()["recall"].trial(denoiser, Sampling(8, 4.0), RecallConfig(0.5))
    assert len(asked) <= 3  # for the form of its answers alone, not once a step
    # It adds up what is said at several levels.
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"HunyuanDiTPipeline can't be led in 4 steps: no known"):
        attacks()["recall"].trial(denoiser, Sampling(4, 4.0), RecallConfig())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pixart_alpha", r"its own call fails there \(tuple index out of range\)"),
        ("kandinsky22_prior", r"its own call fails there \(division by zero\)"),
    ],
)
def test_a_single_step_that_can_not_be_led_is_refused(name, why):
    denoiser = build_task(BUILDERS[name]()).denoiser
    with pytest.raises(ValueError, match=f"can't be led in 1 steps: {why}.*; take more of them"):
        attacks()["recall"].trial(denoiser, Sampling(1, 1.0), RecallConfig())


def test_a_single_step_that_leaves_nothing_of_its_noise_is_led():
    task = build_task(BUILDERS["cogview3plus"]())
    one, (latents,) = replace(task.sampling, steps=1), target_of(task, []).latents
    whole, begun = (Led(task.denoiser, one, steps).drawn(latents, PROMPT, 7) for steps in (1, 0))
    wanted = task.denoiser.pictures(latents[None])
    assert (whole - wanted).norm() <= 0.1 * (begun - wanted).norm()


def test_why_its_levels_are_not_known_is_told_of_every_count_that_was_tried():
    denoiser = build_task(BUILDERS["hunyuan_dit"]()).denoiser
    pipeline = denoiser.pipeline
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"in 24 .*steps .*") as told:
        denoiser.known.levels(denoiser.listener()).found()
    assert all(f"{count}" in str(told.value) for count in STEPS)


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()  # with gradients, encoders compute other last bits
def test_states_of_words_are_read_otherwise_and_nothing_else_is(name):
    denoiser = build_task(BUILDERS[name]()).denoiser
    if name == "omnigen":
        assert not denoiser.known.denoisers[0].states
        return

    def given(text):
        denoiser._heard.clear()
        return leaves(denoiser.condition([text]).calls)

    text, states = states_of(denoiser, 1)
    new = {name: rows + rows.std() for name, rows in states.rows.items()}
    wanted, others = leaves(states.read_as(new, 1).calls), given(OTHER)
    with states.put(denoiser, new):
        found, same_others = given(text), given(OTHER)
    assert all(same(found[leaf], wanted[leaf]) for leaf in wanted)
    assert any(not same(found[leaf], own) for leaf, own in given(text).items())
    assert all(same(same_others[leaf], others[leaf]) for leaf in others)


@pytest.mark.parametrize("name", [one for one in CLASSES if one.values[0] in WITH_CLIP])
def test_searched_words_are_read_as_their_vectors_with_gradients(name):
    target = target_of(build_task(BUILDERS[name]()), [])
    denoiser = target.denoiser
    numbers = tokenizer_of(denoiser)("ghost", add_special_tokens=False).input_ids
    vectors = {name: table[numbers].requires_grad_() for name, table in
               vocabularies(denoiser).items()}  # fmt: skip
    text, wanted = f"a {placeholders(len(numbers))}", leaves(denoiser.condition([PROMPT]).calls)
    with target.training_only({}), placeholder_embeddings(denoiser, vectors):
        found = leaves(denoiser.condition([text]).calls)
    heard = [leaf for leaf, one in found.items() if getattr(one, "requires_grad", False)]
    assert heard
    for leaf in heard:
        assert torch.allclose(found[leaf], wanted[leaf], atol=1e-5)
    slopes = torch.autograd.grad(sum(found[leaf].square().sum() for leaf in heard),
                                 [*vectors.values()])  # fmt: skip
    assert all(slope.any() for slope in slopes)
    # Nothing of it is kept for what "~" means by itself.
    plain = leaves(denoiser.condition([text]).calls)
    assert any(not torch.equal(plain[leaf], found[leaf]) for leaf in heard)
