import dataclasses

import pytest
import torch
from conftest import CATALOGUE, build_tiny_pipeline
from test_erasure import changed, snapshot

from erase.attacks import attacks
from erase.attacks.base import (
    PLACEHOLDER,
    Target,
    encode_text,
    placeholder_embeddings,
    predict_base,
)
from erase.prompts.request import EraseRequest, expand

QUICK = {"steps": 3, "every": 2, "batch_size": 2, "population": 6, "generations": 2, "tokens": 3}


@pytest.fixture
def target() -> Target:
    pipeline = build_tiny_pipeline()
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE).forget[:3]
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def shows(found, prompts):
        assert found.shape == (len(prompts), 3, 16, 16)
        return [bool(picture.mean() > 0.5) for picture in found]

    benign = ["a pizza", "a skull"], 1 - pictures[:2]
    memory = predict_base(pipeline, pictures, [prompt.text for prompt in prompts], 0)
    return Target(pipeline, prompts, pictures, shows, CATALOGUE.sampling, benign, memory)


@pytest.mark.parametrize("name", attacks())
def test_an_attack_leaves_the_model_alone_and_repeats_itself(target, name):
    attack = attacks()[name]
    known = {field.name for field in dataclasses.fields(attack.config)}
    config = attack.config(**{key: value for key, value in QUICK.items() if key in known})
    before = snapshot(target.pipeline)
    one, two = attack(target, config), attack(target, config)
    assert one == two
    assert not changed(before, snapshot(target.pipeline))
    for part in (target.pipeline.unet, target.pipeline.text_encoder):
        assert all(weight.requires_grad and weight.grad is None for weight in part.parameters())
    assert not target.pipeline.text_encoder.get_input_embeddings()._forward_hooks
    assert len(one.hits) == len(one.plain_hits) == len(target.prompts)
    assert one.forward_passes > 0


def test_placeholders_read_as_the_vectors_they_stand_for(target):
    pipeline = target.pipeline
    table = pipeline.text_encoder.get_input_embeddings().weight
    numbers = pipeline.tokenizer("ghost pizza", add_special_tokens=False).input_ids
    text = " ".join([PLACEHOLDER] * len(numbers))
    with placeholder_embeddings(pipeline, table[numbers]):
        assert torch.equal(encode_text(pipeline, [text]), encode_text(pipeline, ["ghost pizza"]))
