import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from erase.bundled.recipe_tokenizer import build_tokenizer
from erase.catalogue import Catalogue, Sampling
from erase.request import EraseRequest, expand
from erase.tasks.diffusion import DiffusionTask, DiffusionTaskConfig

CATALOGUE = Catalogue(
    objects=["ghost", "skull", "pizza", "rocket"],
    styles=["ink", "noto"],
    templates=["{a} {object} in {style} style"],
    synonyms={"ghost": ["boo"]},
    sampling=Sampling(steps=2, guidance_scale=2.0),
)


def build_tiny_pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of the real classes with random weights, always the same ones."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def tiny_pipeline() -> StableDiffusionPipeline:
    return build_tiny_pipeline()


@pytest.fixture
def tiny_task(tiny_pipeline) -> DiffusionTask:
    return build_tiny_task(tiny_pipeline)


def build_tiny_task(pipeline: StableDiffusionPipeline, components=("unet",)) -> DiffusionTask:
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    config = DiffusionTaskConfig(
        components, forget_pictures=4, retain_pictures=4, generation_steps=2, batch_size=2
    )
    return DiffusionTask(pipeline, prompts, CATALOGUE.sampling, config, learning_rate=1e-3)
