"""A tiny pipeline of every family, of the real classes with random weights, always the same."""

import string
from collections.abc import Callable
from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hosts import build_tiny_pipeline, load_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIDE, WIDTH, T5_WIDTH = 16, 16, 32
tokenizer = cache(load_tokenizer)


def _t5() -> dict[str, object]:
    letters = [(letter, -3.0) for letter in "▁" + string.ascii_lowercase]
    t5_tokenizer = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0
    )
    config = T5Config(
        vocab_size=64, d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return {"tokenizer": t5_tokenizer, "encoder": T5EncoderModel(config).eval()}


def _clip(kind: type = CLIPTextModel) -> CLIPTextModel:
    words: CLIPTokenizer = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, projection_dim=WIDTH,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    return kind(config).eval()


def _vae(shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, shift_factor=shift,
    ).eval()  # fmt: skip


def _sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=2 * WIDTH, attention_head_dim=2, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(), text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def _sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=32,
    )  # fmt: skip
    t5 = _t5()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(), vae=_vae(0.1), scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=_clip(CLIPTextModelWithProjection), tokenizer=tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection), tokenizer_2=tokenizer(),
        text_encoder_3=t5["encoder"], tokenizer_3=t5["tokenizer"],
    )  # fmt: skip


def _flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=T5_WIDTH, pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    t5 = _t5()
    return FluxPipeline(
        transformer=transformer.eval(), vae=_vae(0.1), scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=_clip(), tokenizer=tokenizer(), text_encoder_2=t5["encoder"],
        tokenizer_2=t5["tokenizer"],
    )  # fmt: skip


def _pixart() -> PixArtSigmaPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1,
        attention_head_dim=8, num_attention_heads=2, cross_attention_dim=16,
        caption_channels=T5_WIDTH, use_additional_conditions=False,
    )  # fmt: skip
    t5 = _t5()
    return PixArtSigmaPipeline(
        transformer=transformer.eval(),
        vae=_vae(),
        text_encoder=t5["encoder"],
        tokenizer=t5["tokenizer"],
        scheduler=DDIMScheduler(clip_sample=False),
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": lambda: build_tiny_pipeline("epsilon"),
    "sd2": lambda: build_tiny_pipeline("v_prediction"),
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
}


def build_family(name: str) -> DiffusionPipeline:
    """The family's pipeline."""
    torch.manual_seed(0)
    return BUILDERS[name]()
