"""Closed forms on lists of 1 to 1,000 concepts beside 1,000 retained, at SD1.5's and SDXL's shapes.

Run: `python benchmarks/list_shapes.py [--models sd15 sdxl] [--methods ...] [--concepts 1 10 100]`;
goes on where results/list_shapes.json ends, then prints the table. Keys and values of
cross-attention have random weights of the published shapes, in float32 (SDXL's in bfloat16), the
rest of the UNet none; text encoders have their widths and two layers. Every name is read in one
prompt of 77 tokens, and all of them count, but for speed-last, which takes each name's last, as
SPEED's authors do, and cuts no rank. Every case runs in a process of its own, on one thread;
seconds are of processor time, peaks of the whole process, of which Python and the libraries take
about .7 GB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import init_empty_weights
from core_ratios import SD15, resident
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from emoji.tokenizer import build_tokenizer
from family_memory import SDXL
from ledger import Ledger
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

RESULTS = Path(__file__).parent / "results" / "list_shapes.json"
LAST = "speed-last"  # as its authors have it
METHODS = ("projection", "uce", "rece", "speed", LAST, "oce", "balance")
RETAINED, ALL = 1000, 4096
READS_TEXT = ("*attn2.to_k*", "*attn2.to_v*")


def encoder(kind: type, width: int) -> CLIPTextModel:
    """A text encoder of two layers of this width."""
    tokenizer = build_tokenizer()
    return kind(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, projection_dim=width,
        num_attention_heads=width // 64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )).eval()  # fmt: skip


def build(model: str) -> DiffusionPipeline:
    """A pipeline whose denoiser has keys and values of text alone."""
    torch.manual_seed(0)
    with init_empty_weights(include_buffers=True):
        unet = UNet2DConditionModel(**(SDXL if model == "sdxl" else SD15)).eval()
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            values = torch.randn(module.weight.shape) / module.in_features**0.5
            module.weight = nn.Parameter(values)
    tokenizer, scheduler = build_tokenizer(), DDIMScheduler(clip_sample=False)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
    ).eval()  # fmt: skip
    if model == "sd15":
        return StableDiffusionPipeline(
            vae, encoder(CLIPTextModel, 768), tokenizer, unet, scheduler, None, None,
            requires_safety_checker=False,
        )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae, encoder(CLIPTextModel, 768), encoder(CLIPTextModelWithProjection, 1280), tokenizer,
        tokenizer, unet, scheduler, add_watermarker=False,
    )  # fmt: skip


def config_of(method: str) -> object:
    """The defaults, but that every prompt counts, and no denoiser is heard."""
    if method == LAST:
        return replace(config_of("speed"), tokens="last", rank=ALL)
    config = methods()[method].config()
    if method == "rece":
        return replace(config, uce=replace(config.uce, prompts=ALL))
    known = {"prompts": ALL, "samples": ALL, "heard": 0}
    return replace(config, **{name: n for name, n in known.items() if hasattr(config, name)})


def run_case(model: str, method: str, concepts: int) -> dict[str, float]:
    """Erase and write; what that took."""
    torch.set_num_threads(1)
    kept = [f"other {i}" for i in range(RETAINED)]
    names = [f"name {i}" for i in range(concepts)]
    anchors = kept[: len(names)]
    request = EraseRequest(names, anchors, retain=kept, templates=("a picture of {concept}",))
    config = DiffusionTaskConfig(("unet",), READS_TEXT, size=512)
    pipeline = build(model)
    if model == "sdxl":
        pipeline.to(torch.bfloat16)
    task = DiffusionTask(pipeline, expand(request, None), Sampling(1, 7.5), config)
    before, started = resident("VmRSS"), time.process_time()
    erasure: Erasure = methods()[method.partition("-")[0]](task, config_of(method))
    seconds, peak = time.process_time() - started, resident("VmHWM")
    with tempfile.TemporaryDirectory() as folder:
        erasure.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    return {"seconds": seconds, "model_gb": before / 1e3, "peak_gb": peak / 1e3, "mb": size / 1e6}


def table(ledger: Ledger) -> str:
    """One line a case."""
    lines = ["| model | method | concepts | seconds | peak GB | artefact MB |", "| --- " * 6 + "|"]
    for model, method, concepts in sorted(ledger, key=lambda key: (*key[:2], int(key[2]))):
        found = ledger[model, method, concepts]
        cells = [f"{found['seconds']:.1f}", f"{found['peak_gb']:.1f}", f"{found['mb']:.1f}"]
        lines.append(f"| {model} | {method} | {concepts} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, each case in its own process, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["sd15", "sdxl"])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--concepts", nargs="*", type=int, default=[1, 10, 100, 1000])
    args = parser.parse_args()
    ledger = Ledger(RESULTS)
    for model in args.models:
        for concepts in args.concepts:
            for method in args.methods:
                if (key := (model, method, str(concepts))) not in ledger:
                    command = [sys.executable, __file__, "--case", *key]
                    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
                    print(*key, done.returncode, flush=True)
    print(table(Ledger(RESULTS)))


def main_case(model: str, method: str, concepts: str) -> None:
    """One case, kept."""
    Ledger(RESULTS)[model, method, concepts] = run_case(model, method, int(concepts))


if __name__ == "__main__":
    main_case(*sys.argv[2:]) if sys.argv[1:2] == ["--case"] else main()
