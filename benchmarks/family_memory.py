"""What every family's real shapes cost: weights, mask file, LoRA and training memory.

Run: `python benchmarks/family_memory.py`. Models are built from their published configs on the meta
device, so this is arithmetic: bytes a weight as in erase/runs/plan.py, no activations, and T5 and
VAE not counted. Training is SalUn's, of half of what reads the text. benchmarks/salun_step.py
measures what SD1.5's row predicts.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from core_ratios import SD15
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from erase.core.names import named_parameters
from erase.methods.salun import MASK, SalUnConfig
from erase.models.family import FAMILIES
from erase.runs.plan import GRADIENT, MOMENTS, WEIGHT

HALF = 2  # bytes a weight in bfloat16
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "projection_dim": 768,
}  # fmt: skip
CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
    "num_hidden_layers": 32, "projection_dim": 1280,
}  # fmt: skip
SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SD35_MEDIUM = {
    "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
PIXART = {
    "sample_size": 128, "attention_head_dim": 72, "caption_channels": 4096,
    "use_additional_conditions": False,
}  # fmt: skip


def clip(kind: type[nn.Module], shape: dict[str, int]) -> nn.Module:
    """A CLIP text encoder."""
    return kind(CLIPTextConfig(vocab_size=49408, **shape))


def models() -> dict[str, tuple[str, dict[str, nn.Module]]]:
    """By a model's name: its family, and what may change in it."""
    with torch.device("meta"):
        large = {"text_encoder": clip(CLIPTextModel, CLIP_L)}
        giant = {"text_encoder_2": clip(CLIPTextModelWithProjection, CLIP_G)}
        projected = {"text_encoder": clip(CLIPTextModelWithProjection, CLIP_L)}
        sd3 = SD3Transformer2DModel(**SD35_MEDIUM)
        flux = FluxTransformer2DModel(guidance_embeds=True)
        return {
            "SD1.5": ("sd", {"unet": UNet2DConditionModel(**SD15), **large}),
            "SDXL": ("sdxl", {"unet": UNet2DConditionModel(**SDXL), **large, **giant}),
            "SD3.5 medium": ("sd3", {"transformer": sd3, **projected, **giant}),
            "FLUX.1-dev": ("flux", {"transformer": flux, **large}),
            "PixArt-Sigma": ("pixart", {"transformer": PixArtTransformer2DModel(**PIXART)}),
        }


HEAD = (
    "model", "denoiser", "may change", "trained by default", "text enters", "mask file",
    "projection of rank 2", "closed form, float32", "training, float32", "closed form, bfloat16",
    "training, bfloat16",
)  # fmt: skip


def row(name: str, family_name: str, modules: dict[str, nn.Module]) -> str:
    """One model's line of the table."""
    family = FAMILIES[family_name]
    weights = named_parameters(modules)
    denoiser = size(list(modules[family.denoiser].parameters()))
    enters = [p for patterns in family.enters.values() for p in patterns]
    return line(name, denoiser, weights, family.reads_text, enters)


def line(
    name: str, denoiser: int, weights: Mapping[str, nn.Parameter], reads_text: Sequence[str],
    enters: Sequence[str],
) -> str:  # fmt: skip
    """The same of weights by name, of which training and projections change those of patterns."""

    def chosen(patterns: Sequence[str]) -> list[nn.Parameter]:
        return [w for n, w in weights.items() if any(fnmatchcase(n, p) for p in patterns)]

    entering = chosen(enters)
    trained, count = size(chosen(reads_text)), size(list(weights.values()))

    def training(stored: int) -> str:
        # The tensors as they were, for the deltas and the teacher; what is half has masters, of
        # what the mask keeps.
        half = stored == HALF
        moved = trained * (SalUnConfig().density if half else 1)
        moving = (GRADIENT + MOMENTS["adamw"] + (WEIGHT if half else 0)) * moved
        return f"{(stored * count + moving + (MASK + stored) * trained) / 1e9:.1f} GB"

    rank_2 = sum(2 * WEIGHT * (len(w) + w[0].numel()) for w in entering)
    cells = (
        f"{denoiser / 1e6:.0f} M",
        f"{count / 1e6:.0f} M", f"{trained / 1e6:.0f} M", f"{size(entering) / 1e6:.1f} M",
        f"{trained / 8e6:.1f} MB", f"{rank_2 / 1e6:.2f} MB",
        f"{WEIGHT * count / 1e9:.1f} GB", training(WEIGHT),
        f"{HALF * count / 1e9:.1f} GB", training(HALF),
    )  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


def size(parameters: list[nn.Parameter]) -> int:
    """How many weights."""
    return sum(parameter.numel() for parameter in parameters)


def print_head() -> None:
    """Print the table's first lines."""
    print(f"| {' | '.join(HEAD)} |\n{'| --- ' * len(HEAD)}|", flush=True)


def main() -> None:
    """Print the table."""
    print_head()
    for name, (family, modules) in models().items():
        print(row(name, family, modules))


if __name__ == "__main__":
    main()
