"""Models, tasks and pictures that tests share: tiny, of the real classes, always the same."""

import copy
import functools

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch.utils.data import TensorDataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erase.bundled import EMOJI
from erase.prompts.catalogue import Catalogue, Finetuning, Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.task import ClassificationTask
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

CATALOGUE = Catalogue(
    objects=["ghost", "skull", "pizza", "rocket"],
    styles=["ink", "noto"],
    templates=["{a} {object} in {style} style"],
    synonyms={"ghost": ["boo"]},
    sampling=Sampling(steps=2, guidance_scale=2.0),
)
TUNING = Finetuning(1e-3, anchored_rate=1e-3)


def load_tokenizer() -> CLIPTokenizer:
    """The bundled model's."""
    return CLIPTokenizer.from_pretrained(EMOJI, subfolder="tokenizer")


def build_tiny_pipeline(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of the real classes with random weights, always the same ones."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
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


def build_tiny_task(pipeline: DiffusionPipeline, components=("unet",), size=0) -> DiffusionTask:
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    config = DiffusionTaskConfig(
        components, forget_pictures=4, retain_pictures=4, generation_steps=2, batch_size=2,
        size=size,
    )  # fmt: skip
    return DiffusionTask(pipeline, prompts, CATALOGUE.sampling, config, finetuning=TUNING)


def draw_ghost(pipeline: DiffusionPipeline) -> torch.Tensor:
    options = {"use_resolution_binning": False} if "PixArt" in type(pipeline).__name__ else {}
    return pipeline(
        "a ghost", num_inference_steps=2, generator=torch.Generator().manual_seed(5),
        output_type="pt", height=16, width=16, **options,
    ).images  # fmt: skip


@functools.cache
def digits() -> TensorDataset:
    return load_data("digits").train


def build_digits_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@functools.cache
@torch.enable_grad()
def trained_digits_model() -> nn.Module:
    """Always the same weights; tasks are built around copies."""
    model, (pictures, labels) = build_digits_model(), digits().tensors
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def class_indices(label: int) -> list[int]:
    return (digits().tensors[1] == label).nonzero().flatten().tolist()


def build_digits_task(model: nn.Module, **changes) -> ClassificationTask:
    arguments = {"dataset": digits(), "forget": class_indices(3), "classes": 10}
    return ClassificationTask(copy.deepcopy(model), **arguments | changes)


def accuracies(task: ClassificationTask) -> tuple[float, float]:
    pictures, labels = digits().tensors
    with torch.no_grad():
        right = task.predict(pictures).argmax(1) == labels
    return tuple(float(right[indices].float().mean()) for indices in (task.forget, task.retain))
