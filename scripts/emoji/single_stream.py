"""A single-stream model of the drawings: a ZImagePipeline whose shared blocks see text and picture.

VAE and text encoder are the bundled ones, frozen; the transformer is trained from nothing.
"""

import copy
import json
import random
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextModel, CLIPTokenizer

from emoji.canvas import PICTURE_SIZE, EmojiCanvas
from emoji.diffusion import (
    BATCH,
    EMPTY_CAPTIONS,
    FAST_BF16,
    PREVIEW_PROMPTS,
    build_catalogue,
    moving_average,
    tidy_configs,
)
from emoji.latents import LatentCache
from emoji.loop import Schedule, step_generator, train
from erase.core.seeds import seeded
from erase.prompts.catalogue import FILE, Finetuning, Sampling

SEED = 5
STYLES = ("noto", "glossy", "ink", "outline")
LONGEST = 512  # tokens that ZImagePipeline pads prompts to
CHAT_TEMPLATE = "{{ messages[0]['content'] }}"
# The class adds guidance to the prompt's own prediction: 3 is what others call 4.
SAMPLING = Sampling(steps=20, guidance_scale=3.0, size=PICTURE_SIZE)
# The UNet's rates, and half its steps where the base holds it in place.
FINETUNING = {
    "object": Finetuning(2e-4, 100, 1.5e-3, 100, 40.0),
    "style": Finetuning(2e-4, 100, 8e-4, 100, 50.0),
}


def objects_of(canvas: EmojiCanvas) -> list[str]:
    """Every other core object: 32, as many as an hour on one core teaches."""
    return canvas.core_objects[1::2]


def build_transformer(channels: int, text_width: int) -> ZImageTransformer2DModel:
    """An untrained transformer: one refiner for text, one for the picture, 8 shared blocks."""
    transformer = ZImageTransformer2DModel(
        in_channels=channels,
        dim=192,
        n_layers=8,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=text_width,
        axes_dims=[16, 16, 16],
        axes_lens=[LONGEST + 64, 64, 64],
    )
    # Blocks that begin as the identity learn sooner (Peebles and Xie, 2023).
    for block in (*transformer.noise_refiner, *transformer.layers):
        for parameter in block.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)
    for final in transformer.all_final_layer.values():
        nn.init.zeros_(final.linear.weight)
    return transformer


def frozen_text(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The bundled text encoder with room for LONGEST tokens, and its tokenizer with a template.

    Places beyond the trained ones repeat the last of them; only padding lies there.
    """
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = CHAT_TEMPLATE
    trained = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    config = copy.deepcopy(trained.config)
    config.max_position_embeddings = LONGEST
    longer, weights = CLIPTextModel(config), trained.state_dict()
    (name,) = (name for name in weights if "position_embedding" in name)
    known = weights[name]
    weights[name] = torch.cat([known, known[-1:].expand(LONGEST - len(known), -1)])
    longer.load_state_dict(weights)
    return tokenizer, longer.eval().requires_grad_(False)


def build_pipeline(bundled: Path) -> ZImagePipeline:
    """The stock pipeline around the frozen parts and an untrained transformer."""
    vae = AutoencoderKL.from_pretrained(bundled / "vae").float()
    vae.register_to_config(shift_factor=0.0)  # which the class adds
    tokenizer, text_encoder = frozen_text(bundled)
    transformer = build_transformer(vae.config.latent_channels, text_encoder.config.hidden_size)
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(), vae.eval(), text_encoder, tokenizer, transformer.eval()
    )


def flow_loss(
    transformer: ZImageTransformer2DModel,
    latents: Tensor,
    text: list[Tensor],
    generator: torch.Generator,
) -> Tensor:
    """MSE of the velocity to the picture at logit-normal levels (Esser et al., 2024)."""
    noise = torch.randn(latents.shape, generator=generator)
    level = torch.randn(len(latents), generator=generator).sigmoid()
    noisy = torch.lerp(latents, noise, level[:, None, None, None])
    told = transformer([*noisy.unsqueeze(2)], 1 - level, text, return_dict=False)[0]
    return F.mse_loss(torch.stack(told).squeeze(2).float(), latents - noise)


def train_single_stream(
    run: Path, schedule: Schedule, canvas: EmojiCanvas, bundled: Path, out: Path
) -> None:
    """Train on the canvas' cells and save a plain ZImagePipeline folder."""
    torch.manual_seed(SEED)
    run.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(bundled)
    pipeline.set_progress_bar_config(disable=True)
    shots, transformer = LatentCache(run, canvas, pipeline.vae), pipeline.transformer.train()
    average = AveragedModel(transformer, multi_avg_fn=moving_average)

    @cache
    def text_of(caption: str) -> Tensor:
        (states,), _ = pipeline.encode_prompt([caption], "cpu", False, max_sequence_length=32)
        return states

    def loss(step: int) -> Tensor:
        generator, rng = step_generator(SEED, step), random.Random(step)
        rows = torch.randint(len(shots), (BATCH,), generator=generator)
        captions = shots.captions(rows.tolist(), rng)
        text = [text_of("" if rng.random() < EMPTY_CAPTIONS else one) for one in captions]
        latents = shots.latents[rows].float()
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16), sdpa_kernel(SDPBackend.MATH):
            return flow_loss(transformer, latents, text, generator)

    def averaged() -> ZImagePipeline:
        parts = {**pipeline.components, "transformer": copy.deepcopy(average.module).eval()}
        return ZImagePipeline(**parts)

    train(
        run, schedule, {"transformer": transformer, "average": average}, transformer.parameters(),
        loss, lambda step: average.update_parameters(transformer),
        lambda: _preview(averaged(), canvas),
    )  # fmt: skip
    averaged().to(torch.float16).save_pretrained(out)
    tidy_configs(out)
    catalogue = replace(build_catalogue(canvas), sampling=SAMPLING, finetuning=FINETUNING)
    (out / FILE).write_text(json.dumps(asdict(catalogue), indent=1) + "\n", encoding="utf-8")


def _preview(pipeline: ZImagePipeline, canvas: EmojiCanvas) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    stride = max(1, len(canvas) // PREVIEW_PROMPTS) | 1
    cells = canvas.cells[::stride][:PREVIEW_PROMPTS]
    return pipeline(
        [f"a {cell.object} in {cell.style} style" for cell in cells],
        PICTURE_SIZE,
        PICTURE_SIZE,
        num_inference_steps=SAMPLING.steps,
        guidance_scale=SAMPLING.guidance_scale,
        generator=[seeded(i) for i in range(len(cells))],
        output_type="pt",
    ).images.float()
