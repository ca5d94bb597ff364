"""Adversaries lower the error they are asked to, within reach, and no method knows which."""

import pytest
import torch
from hosts import build_tiny_task
from test_diffusion_task import build_task
from tiny_families import SIDE, build_family

from erase.core.precision import gradients
from erase.methods import methods
from erase.methods.salun import SalUnConfig
from erase.tasks.diffusion.adversaries import ADVERSARIES
from erase.tasks.diffusion.adversaries.base import descended
from erase.tasks.diffusion.adversaries.word import _without_concept
from erase.tasks.diffusion.words import vocabularies
from erase.training.config import TrainingConfig

TEXT, POOLED = "text", "pooled"
PLACES = {"prefix": 5, "word": 1}  # of the vectors it speaks in


def mixed_batch(task):
    """Pictures of the concept and of its anchor, some of either."""
    batch = next(iter(task.with_redirection_pictures().forget_batches(0)))
    assert batch.shows.any()
    assert not batch.shows.all()
    return batch


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_an_adversary_lowers_the_error_it_is_asked_to_lower(family, name):
    task = build_tiny_task(build_family(family), (), SIDE)
    batch = mixed_batch(task)

    def error(steps):
        adversary = ADVERSARIES[name](task.denoiser, steps, ADVERSARIES[name].usual_reach)
        with torch.no_grad():  # the search asks for gradients by itself
            return adversary.error(batch, adversary.condition(batch, adversary.found(batch)))

    assert error(4) < error(0)  # without a step it is where it starts


@pytest.mark.parametrize("name", ADVERSARIES)
def test_training_learns_under_what_the_adversary_found(tiny_pipeline, name):
    task = build_task(tiny_pipeline, adversary=name, adversary_steps=2)
    reach = ADVERSARIES[name].usual_reach
    batch = mixed_batch(task)
    known = ADVERSARIES[name](task.denoiser, 2, reach, task._own_weights).prediction(batch)
    retained = next(iter(task.retain_batches(0)))
    plain = task.predict(batch, batch.prompts)
    for asked in (True, False):
        with torch.set_grad_enabled(asked):
            assert torch.equal(task.training_prediction(batch, task), known)
            assert torch.equal(task.predict(batch, batch.prompts), plain)
            kept = task.training_prediction(retained)
            assert torch.equal(kept, task.predict(retained, retained.prompts))
    assert not torch.equal(known, plain)
    config = SalUnConfig(training=TrainingConfig(max_train_steps=2, learning_rate=1e-3))
    robust, same = (methods()["salun"](task, config) for _ in "ab")
    layer = next(iter(robust.deltas))
    assert torch.equal(robust.deltas[layer].dense(), same.deltas[layer].dense())


def test_half_of_the_prompts_go_on_naming_the_concept_beside_a_learnt_word(tiny_pipeline):
    task = build_task(tiny_pipeline, adversary="word", adversary_steps=2, batch_size=4)
    batch = mixed_batch(task)
    batch.noise[:, 0, 0, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    adversary = ADVERSARIES["word"](task.denoiser, 2, 20.0)
    words = task.denoiser.denoise(batch, adversary.condition(batch, adversary.found(batch)))
    plain, found = task.predict(batch, batch.prompts), task.training_prediction(batch)
    named = batch.noise[:, 0, 0, 0] > 0
    assert torch.allclose(found[named], plain[named], atol=1e-6)
    assert torch.allclose(found[~named], words[~named], atol=1e-6)


def test_a_target_is_the_teachers_answer_moved_off_what_lies_between_both_models(tiny_pipeline):
    task = build_task(tiny_pipeline, adversary="target", adversary_steps=3)
    base, batch = task.frozen_copy(), mixed_batch(task)
    with torch.no_grad():
        for weight in task.parameters().values():
            weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    now = {name: weight.clone() for name, weight in task.parameters().items()}
    own, was = (one.predict(batch, batch.prompts).detach() for one in (task, base))
    assert not torch.equal(own, was)

    def drawn(steps):
        """What the teacher draws under the word, and how far that is from both."""
        word = ADVERSARIES["word"](task.denoiser, steps, 20.0)
        adversary = ADVERSARIES["target"](task.denoiser, steps, 20.0, base._own_weights)
        found = adversary.found(batch)
        with torch.no_grad(), base._own_weights():
            word = task.denoiser.denoise(batch, word.condition(batch, found))
        apart = [(word - one)[batch.shows].square().mean() for one in (own, was)]
        return word, sum(apart)

    assert drawn(3)[1] < drawn(0)[1]
    answer = 2 * base.predict(batch, batch.anchors).detach() - drawn(3)[0]
    learnt = task.redirected_loss(batch, base)
    assert torch.allclose(learnt, (own - answer).square().mean(), rtol=1e-4)
    assert learnt.requires_grad
    for name, weight in task.parameters().items():
        assert torch.equal(weight, now[name])
    for away in (lambda: task.divergence(batch, base), lambda: task.loss(batch)):
        with pytest.raises(ValueError, match="this method teaches none"):
            away()


def test_states_stay_within_their_reach_and_pictures_without_the_concept_are_left_alone(
    tiny_pipeline,
):
    task = build_task(tiny_pipeline)
    batch = mixed_batch(task)
    deviation = task.condition(batch.prompts).states.detach().std((1, 2))
    for reach, steps in ((0.5, 3), (2.0, 5)):
        shift = ADVERSARIES["states"](task.denoiser, steps, reach).found(batch)[TEXT]
        moved = shift.square().mean((1, 2)).sqrt() / deviation
        assert (moved <= reach * (1 + 1e-5)).all()
        assert (moved[batch.shows] > 0.3 * reach).all()
        assert (moved[~batch.shows] == 0).all()


def test_words_stay_within_their_reach_of_the_vocabulary(tiny_pipeline):
    task = build_task(tiny_pipeline)
    batch = mixed_batch(task)
    (table,) = vocabularies(task.denoiser).values()
    for name, count in PLACES.items():
        (words,) = ADVERSARIES[name](task.denoiser, 3, 2.0).found(batch).values()
        assert words.shape == (count, table.shape[1])
        nearest = torch.cdist(words, table).square().min(1).values
        assert nearest.sum() <= (2.0 * table.std()) ** 2 * words.numel() * (1 + 1e-5)


def test_a_step_is_the_formula_by_hand():
    start = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    unit = torch.tensor(0.5)

    def error(found):
        return (found["x"] * torch.tensor([[3.0, 4.0], [0.0, 12.0]])).sum()

    (shared,) = descended(error, {"x": start.clone()}, {"x": unit}, 2, 0.8, torch.float32).values()
    slope = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    size = ((9 + 16 + 144) / 4) ** 0.5
    assert torch.allclose(shared, start - 2 * (0.8 / 2) * 0.5 * slope / size)
    known = {"x": start.clone()}, {"x": unit}, 1, 0.8, torch.float32
    (own,) = descended(error, *known, shared=False).values()
    sizes = torch.tensor([[(25 / 2) ** 0.5], [(144 / 2) ** 0.5]])
    assert torch.allclose(own, start - 0.8 * 0.5 * slope / sizes)


@pytest.mark.parametrize("power", [-26, 8])  # beyond float16's range, and its scaled loss's
def test_gradients_through_float16_neither_vanish_nor_overflow(power):
    numbers = torch.tensor([1.0, -2.0], requires_grad=True)
    half = numbers.half()
    for part in (power // 2, power - power // 2):
        half = half * 2.0**part
    (slope,) = gradients(half.float().sum(), [numbers], torch.float16)
    assert torch.equal(slope, torch.full((2,), 2.0**power))


@pytest.mark.parametrize(
    ("prompt", "anchor", "read"),
    [
        ("a ghost in ink style", "a pizza in ink style", "a ~ in ink style"),
        ("an old ghost in ink style", "a pizza in ink style", "~ in ink style"),
        ("a ghost in ink style", "a ghost in noto style", "a ghost in ~ style"),
        ("honey bee", "", "~"),
        ("a ghost", "a", "a ~"),
    ],
)
def test_the_word_stands_where_a_prompt_names_the_concept(prompt, anchor, read):
    assert _without_concept(prompt, anchor) == read


def test_the_steps_alone_mean_a_prefix(tiny_pipeline):
    alone, named = (
        build_task(tiny_pipeline, **said)
        for said in ({"adversary_steps": 2}, {"adversary": "prefix", "adversary_steps": 2})
    )
    batch = mixed_batch(alone)
    assert torch.equal(alone.training_prediction(batch), named.training_prediction(batch))
    usual = build_task(tiny_pipeline, adversary="prefix", adversary_steps=4, adversary_reach=20.0)
    unsaid = build_task(tiny_pipeline, adversary="prefix")
    assert torch.equal(usual.training_prediction(batch), unsaid.training_prediction(batch))
    with pytest.raises(ValueError, match="adversary_steps"):
        build_task(tiny_pipeline, adversary_steps=-1)
    with pytest.raises(ValueError, match="adversary is 'sentence'; choose one of"):
        build_task(tiny_pipeline, adversary="sentence")


@pytest.mark.parametrize("said", [{"adversary_steps": 2}, {"adversary": "word"}])
def test_words_need_a_text_encoder_that_may_change_and_states_do_not(said):
    pixart = build_family("pixart")
    why = r"pixart: it looks for words .*; take --task.adversary states, or leave .* out"
    with pytest.raises(ValueError, match=why):
        build_task(pixart, **said)
    task = build_task(pixart, adversary="states")
    batch = mixed_batch(task)
    plain = task.predict(batch, batch.prompts)
    learnt = task.training_prediction(batch)
    assert not torch.equal(learnt[batch.shows], plain[batch.shows])
    assert torch.allclose(learnt[~batch.shows], plain[~batch.shows], atol=1e-6)
