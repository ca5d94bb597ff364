"""What it costs at real shapes to edit pipelines of classes that are learned.

Run: `PYTHONPATH=tests python benchmarks/learned_memory.py`. A tiny pipeline of each class tells
which layers hear text; the same layers are looked up in a denoiser on the meta device, of the
class's default config, or of PUBLISHED where that is not whole. So this is arithmetic as
family_memory.py's: bytes a weight, no activations, no text encoders, no VAE; training is SalUn's,
of half of what hears text. Classes that lack a layer through which text enters are named at the
end.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from core_ratios import SD15
from diffusers import DiffusionPipeline, UNet2DConditionModel
from family_memory import line, print_head, size
from tiny_classes import BUILDERS
from torch import nn

from erase.core.names import named_parameters
from erase.models.learned import LearnedFamily, learned
from erase.models.text_layers import starred

PIXART = {"caption_channels": 4096}
# The numbers of published models whose class has no whole config of its own, as far as they matter
# to shapes: PixArt-alpha, HunyuanDiT 1.2, HiDream-I1, Latte-1, Lumina-Next, OmniGen 1, Stable
# Cascade's prior, IF-I-XL and LCM (Stable Diffusion 1.5).
PUBLISHED: dict[str, dict[str, Any]] = {
    "PixArtAlphaPipeline": PIXART,
    "HunyuanDiTPipeline": {
        "in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_layers": 40,
        "mlp_ratio": 4.3637, "sample_size": 128, "use_style_cond_and_image_meta_size": False,
    },
    "HiDreamImagePipeline": {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": [4096, 4096],
        "axes_dims_rope": (64, 32, 32), "llama_layers": [*range(32), *[31] * 16],
    },
    "LattePipeline": PIXART | {
        "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
        "cross_attention_dim": 1152, "attention_bias": True, "patch_size": 2,
        "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
    },
    "LuminaPipeline": {"num_layers": 24, "num_kv_heads": 8},
    "OmniGenPipeline": {
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "su"},
    },
    "StableCascadePriorPipeline": {
        "clip_text_in_channels": 1280, "clip_image_in_channels": 768, "switch_level": (False,),
    },
    "IFPipeline": {
        "in_channels": 3, "out_channels": 6, "block_out_channels": (704, 1408, 2112, 2816),
        "layers_per_block": 3, "attention_head_dim": 64, "cross_attention_dim": 2816,
        "cross_attention_norm": "group_norm", "encoder_hid_dim": 4096,
        "addition_embed_type": "text", "addition_embed_type_num_heads": 64, "act_fn": "gelu",
        "resnet_time_scale_shift": "scale_shift",
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    },
    "LatentConsistencyModelPipeline": SD15 | {"time_cond_proj_dim": 256},
}  # fmt: skip


def real(pipeline: DiffusionPipeline, known: LearnedFamily) -> dict[str, nn.Module]:
    """Denoisers of published or default configs, without values; none where there are none."""
    kinds = {name: type(getattr(pipeline, name)) for name in known.names}
    config = PUBLISHED.get(known.pipeline, {})
    if UNet2DConditionModel in kinds.values() and not config:
        return {}  # its default is another pipeline's
    with torch.device("meta"):
        modules = {name: kind(**config) for name, kind in kinds.items()}
    there = named_parameters(modules)
    whole = all(any(fnmatchcase(name, one) for name in there) for one in entering(known))
    return modules if whole else {}


def entering(known: LearnedFamily) -> list[str]:
    """Patterns of the weights through which text enters."""
    return patterns([name for names in known.enters.values() for name in names])


def row(known: LearnedFamily, modules: dict[str, nn.Module]) -> str:
    """One class's line of the table, without its name."""
    hears = [f"{pattern}.*" for pattern in patterns([*known.text, *known.timed])]
    weights = named_parameters(modules)
    whole = line("", size(list(weights.values())), weights, hears, entering(known))
    return whole.removeprefix("|  ")


def patterns(names: list[str]) -> list[str]:
    """Names with stars for their numbers; a tiny model has fewer blocks."""
    return starred(names).split(", ") if names else []


def main() -> None:
    """Print the table."""
    print_head()
    lines, without = set[str](), []
    for build in BUILDERS.values():
        pipeline = build()
        known = learned(pipeline)
        modules = real(pipeline, known)
        if not modules:
            without.append(known.pipeline)
        elif (figures := row(known, modules)) not in lines:  # others share a denoiser
            lines.add(figures)
            print(f"| {known.pipeline.removesuffix('Pipeline')} {figures}", flush=True)
    print(f"\nNo such default config: {', '.join(without)}.")


if __name__ == "__main__":
    main()
