"""SalUn and projection on UNets of SD1.5's and SDXL's size: seconds, peak memory, reload.

Run: `python benchmarks/real_shapes.py [float32]`. UNets come from their published configs with
random weights, stored in bfloat16 unless another dtype is named, beside text encoders of their
widths, both small; latents are 64 x 64. SalUn trains keys
and values of cross-attention for two steps of one forget and one retain sample, with checkpointed
activations and the model as it is for a teacher. Every case runs in a process of its own, writes
its erasure, reads it back and applies it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from core_ratios import SD15, resident
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from emoji.tokenizer import build_tokenizer
from family_memory import SDXL
from salun_step import build_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainingConfig

TRAINING = TrainingConfig(2, gradient_checkpointing=True)
CONFIGS = {
    "salun": SalUnConfig(teacher="current", training=TRAINING),
    "projection": ProjectionConfig(),
}
PIXELS = 512


def build_sdxl() -> StableDiffusionXLPipeline:
    """SDXL's UNet beside two text encoders of its widths and a VAE of its shape, all small."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()

    def text(kind: type, width: int) -> CLIPTextModel:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2,
            projection_dim=width, num_attention_heads=width // 64,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return kind(config).eval()

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=text(CLIPTextModel, 768),
        text_encoder_2=text(CLIPTextModelWithProjection, 1280), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=UNet2DConditionModel(**SDXL).eval(),
        scheduler=DDIMScheduler(clip_sample=False), add_watermarker=False,
    )  # fmt: skip


def build(model: str) -> DiffusionPipeline:
    """A pipeline of real size; its UNet's activations are not checkpointed yet."""
    if model == "sdxl":
        return build_sdxl()
    pipeline = build_pipeline()
    assert pipeline.unet.config.cross_attention_dim == SD15["cross_attention_dim"]
    pipeline.unet.disable_gradient_checkpointing()
    return pipeline


def run_case(model: str, method: str, dtype: str) -> str:
    """Erase, write, read, apply and revert; what that took."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # so that it is never held wider
    pipeline = build(model)
    torch.set_default_dtype(usual)
    config = DiffusionTaskConfig(
        ("unet",), ("*attn2.to_k*", "*attn2.to_v*"), forget_pictures=1, retain_pictures=1,
        generation_steps=1, batch_size=1, size=PIXELS,
    )  # fmt: skip
    prompts = expand(EraseRequest(["ghost"], retain=["pizza"]), None)
    task = DiffusionTask(pipeline, prompts, Sampling(1, 7.5), config)
    task.with_redirection_pictures().prepare()
    before, started = resident("VmRSS"), time.perf_counter()
    erasure = methods()[method](task, CONFIGS[method])
    seconds, peak = time.perf_counter() - started, resident("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        erasure.save_pretrained(folder)
        stored = sum(path.stat().st_size for path in Path(folder).iterdir())
        back = Erasure.from_pretrained(folder)
    name, weight = next(iter(task.editable().items()))
    old = weight.detach().clone()
    with back.apply(pipeline.components):
        moved = not torch.equal(old, weight)
    assert moved == (name in back.deltas)
    assert torch.equal(old, weight)
    count = sum(parameter.numel() for parameter in task.parameters().values())
    return (
        f"weights={count / 1e6:.0f}M seconds={seconds:.0f} model_gb={before / 1e3:.1f} "
        f"peak_gb={peak / 1e3:.1f} folder_mb={stored / 1e6:.1f}"
    )


def main() -> None:
    """Every case in its own process."""
    dtype = (sys.argv[1:] or ["bfloat16"])[0]
    for model in ("sd15", "sdxl"):
        for method in CONFIGS:
            command = [sys.executable, __file__, model, method, dtype]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(model, method, dtype, line.strip(), flush=True)


if __name__ == "__main__":
    print(run_case(*sys.argv[1:])) if len(sys.argv) > 2 else main()
