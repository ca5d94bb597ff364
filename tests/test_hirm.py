"""HiRM beside its formula, and that it trains the first layer alone and draws nothing."""

import pytest
import torch
from hosts import CATALOGUE, TUNING, build_tiny_pipeline, build_tiny_task
from tiny_families import build_family

from erase.methods.hirm import HiRMConfig, first_layers, hirm, said_of
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainingConfig


def task_of(pipeline):
    return build_tiny_task(pipeline, ("text_encoder",))


def with_layers(count: int):
    """A tiny pipeline whose text encoder has so many layers."""
    pipeline = build_tiny_pipeline()
    config = pipeline.text_encoder.config
    config.num_hidden_layers = count
    torch.manual_seed(1)
    pipeline.text_encoder = type(pipeline.text_encoder)(config).eval()
    return pipeline


def test_what_is_heard_is_the_output_of_the_last_attention():
    pipeline = with_layers(3)
    task, texts = task_of(pipeline), ["a ghost in ink style", "a pizza in ink style"]
    ids = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = pipeline.text_encoder(ids.input_ids, output_hidden_states=True).hidden_states
        layer = pipeline.text_encoder.encoder.layers[-1]
        causal = torch.full((states[2].shape[1],) * 2, float("-inf")).triu(1)[None, None]
        wanted, _ = layer.self_attn(layer.layer_norm1(states[2]), attention_mask=causal)
        found = said_of(task, texts)["text_encoder"]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_first_layers_attention_and_mlp_are_trained_and_nothing_else():
    names = first_layers(task_of(with_layers(3)))
    assert names
    assert all(".layers.0.self_attn." in name or ".layers.0.mlp." in name for name in names)
    both = DiffusionTask(build_family("sdxl"), expand(EraseRequest(["ghost"]), CATALOGUE),
                         CATALOGUE.sampling, DiffusionTaskConfig(), finetuning=TUNING)  # fmt: skip
    assert {name.partition(".")[0] for name in first_layers(both)} == {
        "text_encoder", "text_encoder_2",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["anchor", "random"])
def test_what_is_said_of_the_concept_comes_nearer_to_the_target(target):
    pipeline = with_layers(3)
    task, texts = task_of(pipeline), [p.text for p in task_of(pipeline).prompts.forget]
    config = HiRMConfig(target, 3.0, 0.0, training=TrainingConfig(20, 1e-2))
    with torch.no_grad():
        before = said_of(task, texts)["text_encoder"]
        if target == "anchor":
            wanted = said_of(task, [p.anchor for p in task.prompts.forget])["text_encoder"]
        erasure = hirm(task, config)
        with erasure.apply(pipeline.components):
            after = said_of(task, texts)["text_encoder"]
    if target == "random":  # one direction of length 3 for all
        generator = torch.Generator().manual_seed(task.seed)
        direction = torch.randn(before.shape[1:], generator=generator)
        wanted = 3 * direction / direction.norm()
    assert (after - wanted).norm() < (before - wanted).norm()


def test_no_picture_is_drawn():
    pipeline = with_layers(2)
    task = task_of(pipeline)
    pipeline.unet.forward = None
    assert hirm(task, HiRMConfig(training=TrainingConfig(2, 1e-3))).deltas


def test_without_a_text_encoder_it_is_refused():
    with pytest.raises(ValueError, match="hirm trains the first layer of text_encoder"):
        hirm(build_tiny_task(build_tiny_pipeline(), ("unet",)), HiRMConfig())
