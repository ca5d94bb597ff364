"""SalUn on a UNet of SD1.5's size: seconds a step and peak memory, all weights against fewer.

Run: `python benchmarks/salun_step.py`. The UNet is built from SD1.5's config with random weights,
latents are 64 x 64, a step sees one forget and one retain sample, gradients are checkpointed, and
the teacher is the model as it is (the paper's), for a frozen one adds 3.4 GB to every row. Every
case runs in a process of its own.
"""

import subprocess
import sys
import time

import torch
from core_ratios import SD15, resident
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from emoji.tokenizer import build_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from erase.methods import methods
from erase.methods.salun import SalUnConfig
from erase.methods.salun_lora import SalUnLoRAConfig
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.loop import TrainingConfig

STEPS = 3
TRAINING = TrainingConfig(max_train_steps=STEPS)
CASES = {
    "full": (("*",), "salun", SalUnConfig(teacher="current", training=TRAINING)),
    "attention": (("*attn2*",), "salun", SalUnConfig(teacher="current", training=TRAINING)),
    "lora": (("*",), "salun_lora", SalUnLoRAConfig(teacher="current", training=TRAINING)),
}


def build_pipeline() -> StableDiffusionPipeline:
    """SD1.5's UNet beside a text encoder of its width and a VAE of its shape, both small."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        num_hidden_layers=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(**SD15)
    unet.enable_gradient_checkpointing()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text_config).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def run_case(case: str) -> str:
    """Erase with one forget and one retain picture; what the whole method took."""
    include, method, config = CASES[case]
    task_config = DiffusionTaskConfig(
        include=include, forget_pictures=1, retain_pictures=1, generation_steps=1, batch_size=1
    )
    prompts = expand(EraseRequest(["ghost"], retain=["pizza"]), None)
    task = DiffusionTask(build_pipeline(), prompts, Sampling(1, 7.5), task_config)
    task.with_redirection_pictures().prepare()
    before = resident("VmRSS")
    marks: list[float] = []
    plain = task.redirected_loss
    task.redirected_loss = lambda *batch: marks.append(time.perf_counter()) or plain(*batch)
    started = time.perf_counter()
    erasure = methods()[method](task, config)
    total = time.perf_counter() - started
    step = (marks[-1] - marks[0]) / (STEPS - 1)
    return (
        f"step_seconds={step:.1f} all_seconds={total:.1f} model_mb={before:.0f} "
        f"peak_mb={resident('VmHWM'):.0f} artefact_mb={erasure.nbytes / 1e6:.0f}"
    )


def main() -> None:
    """Every case in its own process."""
    for case in CASES:
        command = [sys.executable, __file__, case]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(case, line.strip(), flush=True)


if __name__ == "__main__":
    print(run_case(sys.argv[1])) if len(sys.argv) > 1 else main()
