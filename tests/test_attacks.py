import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hosts import CATALOGUE
from tiny_families import SIDE, build_family
from torch import nn

from erase.attacks import ATTACKS, attacks, get_attack, register, serving
from erase.attacks.base import Outcome, Target, predict_base
from erase.attacks.prefix import PrefixConfig
from erase.attacks.recall import RecallConfig
from erase.attacks.state_inversion import read_instead
from erase.models.family import FAMILIES
from erase.models.tokens import last_positions
from erase.prompts.request import EraseRequest, expand
from erase.prompts.seeds import (
    ATTACK_SEED,
    EVALUATION_SEED,
    MATRIX_SEED,
    STREAMS,
    TARGET_SEED,
    of_attack,
    of_stream,
)
from erase.runs.attack import AttackRun, _serving
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.words import placeholder_embeddings, placeholders, vocabularies

QUICK = {"steps": 2, "every": 2, "batch_size": 2, "population": 6, "generations": 2, "tokens": 3}
SERVED = [(family, name) for family in FAMILIES for name in serving(FAMILIES[family])]


@cache
def target_of(family: str, dtype: torch.dtype = torch.float32) -> Target:
    pipeline = build_family("sd2" if family == "sd" else family).to(dtype)
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE).forget[:3]
    pictures = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    denoiser = ConditionedDenoiser(pipeline, SIDE)
    sampling = dataclasses.replace(CATALOGUE.sampling, size=SIDE)

    def shows(found, prompts):
        assert found.shape == (len(prompts), 3, SIDE, SIDE)
        assert found.isfinite().all()
        return [bool(picture.mean() > 0.5) for picture in found]

    benign = ["a pizza", "a skull"], 1 - pictures[:2]
    texts = [prompt.text for prompt in prompts]
    memory = predict_base(denoiser, denoiser.latents(pictures), texts, 0)
    return Target(denoiser, prompts, pictures, shows, sampling, benign, memory)


def attacked(name: str, target: Target) -> Outcome:
    config = attacks()[name].config
    known = {field.name for field in dataclasses.fields(config)}
    return attacks()[name](
        target, config(**{key: value for key, value in QUICK.items() if key in known})
    )


def test_no_two_seeds_of_attacks_draw_the_same_nor_what_others_draw():
    seeds = [*range(-250, 250), 2024, 2**31, 10**12, -(10**12)]
    one, other = ([of_attack(first, s) for s in seeds] for first in (TARGET_SEED, ATTACK_SEED))
    firsts = sorted(one + other)
    assert all(b - a >= 10_000 for a, b in pairwise(firsts))
    streams = {first // 1_000_000 % 10 for first in firsts}
    assert streams == {first // 1_000_000 for first in (TARGET_SEED, ATTACK_SEED)}
    of_runs = sorted(of_stream(stream, 0) for stream in STREAMS)
    assert not streams & {first // 1_000_000 for first in (*of_runs, EVALUATION_SEED, MATRIX_SEED)}
    assert of_runs[0] == 1_000_000  # below lie users' own seeds, and steps of training
    assert all(b - a >= 500_000 for a, b in pairwise([*of_runs, TARGET_SEED]))
    assert dataclasses.replace(target_of("sd"), seed=2024).seeds.start in other


def modules_of(target: Target) -> list[nn.Module]:
    return [part for part in target.pipeline.components.values() if isinstance(part, nn.Module)]


@contextmanager
def evaluations(target: Target) -> Iterator[list[int]]:
    """How many samples the denoiser is asked of, call by call."""
    asked = []

    def count(module, inputs, named):
        asked.append(len(inputs[0] if inputs else named.get("sample", named.get("hidden_states"))))

    denoiser = getattr(target.pipeline, target.denoiser.family.denoiser)
    with denoiser.register_forward_pre_hook(count, with_kwargs=True):
        yield asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "name"), SERVED)
def test_an_attack_leaves_the_model_alone_and_tells_its_budget(family, name, dtype):
    target = target_of(family, dtype)
    assert len(target.plain_hits) == len(target.latents) == 3  # drawn before, and coded
    weights = [weight for module in modules_of(target) for weight in module.parameters()]
    before = [weight.clone() for weight in weights]
    with evaluations(target) as asked:
        one = attacked(name, target)
    assert all(map(torch.equal, weights, before))
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    for encoder in target.denoiser.word_encoders.values():
        assert not encoder.get_input_embeddings()._forward_hooks
    assert len(one.hits) == len(one.plain_hits) == len(target.prompts)
    assert one.forward_passes == sum(asked) > 0


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_recall_of_less_than_a_step_is_refused_before_any_work(family):
    target, recall = target_of(family), get_attack("recall")
    few = RecallConfig(0.4)
    with pytest.raises(ValueError, match=r"strength is 0.4, less than one of 2 steps.*; give more"):
        recall.trial(target.denoiser, target.sampling, few)
    recall.trial(target.denoiser, target.sampling, RecallConfig(0.5))
    assert recall(target, RecallConfig(0.5)).hits


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_placeholders_read_as_the_words_whose_vectors_stand_for_them(family):
    denoiser = target_of(family).denoiser
    numbers = denoiser.pipeline.tokenizer("ghost pizza", add_special_tokens=False).input_ids
    vectors = {name: table[numbers] for name, table in vocabularies(denoiser).items()}
    with placeholder_embeddings(denoiser, vectors):
        found = denoiser.condition([placeholders(2)])
    wanted = denoiser.condition(["ghost pizza"])
    if family in ("sd", "sdxl"):  # elsewhere T5 reads the placeholders as they stand
        assert torch.equal(found.states, wanted.states)
    if family != "sd":
        assert torch.equal(found.pooled, wanted.pooled)


def test_a_family_that_an_attack_cannot_serve_is_refused():
    with pytest.raises(ValueError, match=r"prefix cannot serve a PixArtSigmaPipeline: .*CLIP"):
        attacked("prefix", target_of("pixart"))
    with pytest.raises(ValueError, match=r"recall cannot serve .*image-to-image.*; choose of"):
        attacked("recall", target_of("pixart"))


@pytest.mark.parametrize(("family", "name"), SERVED)
def test_no_more_words_are_searched_than_the_model_reads(family, name):
    target, attack = target_of(family), get_attack(name)
    (searched,) = {"tokens", "vectors"} & attack.config.__dataclass_fields__.keys() or {""}
    if not searched:
        return

    def asked(count: int):
        quick = {"steps": 1, "population": 4, "generations": 1}
        known = quick.keys() & attack.config.__dataclass_fields__.keys()
        config = attack.config(**{searched: count}, **{key: quick[key] for key in known})
        attack.trial(target.denoiser, target.sampling, config)
        return config

    with pytest.raises(ValueError, match=rf"{searched} is 1000, .* reads \d+ .*; give") as told:
        asked(1000)
    most = int(str(told.value).split(" reads ")[1].split()[0])
    assert most > 20
    assert attack(target, asked(most)).hits


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="The attack 'prefix' is there already"):
        register("prefix", PrefixConfig)(lambda target, config: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_one_prompt_are_read_otherwise_and_no_others(family):
    target = target_of(family)
    denoiser = target.denoiser
    module, text = getattr(target.pipeline, denoiser.family.denoiser), "a thing"
    places = last_positions(target.pipeline, denoiser.family.readers, [text])[0]
    with torch.no_grad():
        own = denoiser.condition([text]).states[0, places]
    texts = [text, "a pizza", text]
    plain = target.drawn(texts)
    with read_instead(module, places, own, own):
        assert torch.equal(target.drawn(texts), plain)
    with read_instead(module, places, own, own + 3 * own.std() * torch.randn(own.shape)):
        drawn = target.drawn(texts)
    same = [torch.equal(a, b) for a, b in zip(drawn, plain, strict=True)]
    assert same == [False, True, False]


def test_by_default_what_cannot_serve_the_model_is_left_out(tiny_task, monkeypatch):
    def refusing(denoiser, sampling, config):
        raise ValueError("it cannot be led")

    strict = dataclasses.replace(get_attack("recall"), trial=refusing)
    monkeypatch.setitem(ATTACKS._entries, "recall", strict)
    model = SimpleNamespace(pipeline=tiny_task.denoiser.pipeline)
    opened = SimpleNamespace(model=model, task=tiny_task, sampling=tiny_task.sampling)
    every = set(serving(tiny_task.family))
    assert set(_serving(AttackRun("erasure"), opened)) == every - {"recall"}
    with pytest.raises(ValueError, match="it cannot be led"):
        _serving(AttackRun("erasure", ["prefix", "recall"]), opened)
