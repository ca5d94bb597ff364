"""Closed forms on lists of 1 to 1,000 concepts beside 1,000 retained, at SD1.5's and SDXL's shapes.

Run: `python benchmarks/list_shapes.py [--models sd15 sdxl] [--methods ...] [--concepts 1 10 100]`;
goes on where results/list_shapes.json ends, then prints the table. Keys and values of
cross-attention have random weights of the published shapes, in float32 (SDXL's in bfloat16), the
rest of the UNet none; text encoders have their widths and two layers. Every name is read in one
prompt of 77 tokens, and all of them count, but for speed-last, which takes each name's last, as
SPEED's authors do, and cuts no rank; oce-cut and projection-cut are LoRAs of rank 100, whatever
the list. Every case runs in a process of its own, on as many threads as OMP_NUM_THREADS says, or
all cores; seconds are of processor time, those of reading prompts apart, and by the clock, peaks of
the whole process, of which Python and the libraries take about .7 GB.

How far outputs move is |dW x| over |W x| of all tokens x of a prompt, of every third weight: the
mean and the worst over weights and FIFTY retained prompts, and over as many CAPTIONS, made of
common words as COCO's captions are, which nothing retains. The error is the share of |dW| that a
cut leaves out, or float16 would, on average over these weights.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

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
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from erase.core.delta import Delta, LowRankDelta, truncate_delta
from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.models.conditions import Condition
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

RESULTS = Path(__file__).parent / "results" / "list_shapes.json"
LAST = "speed-last"  # as its authors have it
CUT, CUT_RANK = "-cut", 100
METHODS = (
    "projection", "projection-cut", "uce", "rece", "speed", LAST, "oce", "oce-cut", "balance"
)  # fmt: skip
TOO_LONG = {("sdxl", "speed")}  # each of 140 weights weighs all 77,077 retained tokens anew
RETAINED, ALL, FIFTY, THIRD = 1000, 4096, 50, 3
SETS = ("retained", "captions")
TOKENS, ONCE = 77, 32  # of a prompt; of rows measured before they were told
CAPTIONS = (
    ("a man", "a woman", "two dogs", "a cat", "a child", "a group of people", "an old bus",
     "a brown horse", "a small bird", "a red truck"),
    ("sitting on", "standing next to", "looking at", "in front of", "walking past"),
    ("a wooden bench", "a bicycle", "a parked car", "a kitchen table", "a traffic light",
     "a plate of food", "a large window", "a train", "a laptop", "an umbrella"),
    ("in the city", "on the beach", "in a field", "at night", "in the snow"),
)  # fmt: skip
READS_TEXT = ("*attn2.to_k*", "*attn2.to_v*")


def words() -> CLIPTokenizer:
    """The bundled model's tokenizer, of prompts as long as Stable Diffusion's."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TOKENS
    return tokenizer


def encoder(kind: type, width: int) -> CLIPTextModel:
    """A text encoder of two layers of this width."""
    tokenizer = words()
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
            module.weight = nn.Parameter(values.bfloat16() if model == "sdxl" else values)
    tokenizer, scheduler = words(), DDIMScheduler(clip_sample=False)
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
    config = methods()[method.removesuffix(CUT)].config()
    if method == "oce-cut":
        config = replace(config, rank=CUT_RANK)
    if method == "rece":
        return replace(config, uce=replace(config.uce, prompts=ALL))
    known = {"prompts": ALL, "samples": ALL, "heard": 0}
    return replace(config, **{name: n for name, n in known.items() if hasattr(config, name)})


def captions() -> list[str]:
    """Fifty captions, always the same ones."""
    lot = random.Random(0)
    return [" ".join(lot.choice(part) for part in CAPTIONS) for _ in range(FIFTY)]


@torch.no_grad()
def moved(task: DiffusionTask, deltas: dict[str, Delta], prompts: list[str]) -> Tensor:
    """How far what a third of the weights make of the prompts goes [weights, prompts]."""
    ((_, given),) = task.readings(prompts).items()
    read, found = given.float(), []
    for name in [*deltas][::THIRD]:
        weight, delta = task.editable()[name].detach().float(), deltas[name]
        dense = not isinstance(delta, LowRankDelta)
        change = read @ delta.dense().T if dense else read @ delta.down.T @ delta.up.T
        sizes = (part.flatten(1).norm(dim=1) for part in (change, read @ weight.T))
        found.append(next(sizes) / next(sizes))
    return torch.stack(found)


def error_in_half(deltas: dict[str, Delta]) -> float:
    """The share of the change that float16 would round away, in the mean of a third of them."""
    lost = []
    for delta in [*deltas.values()][::THIRD]:
        rounded = {part: values.half().float() for part, values in delta.tensors().items()}
        whole = delta.dense()
        lost.append((replace(delta, **rounded).dense() - whole).norm() / whole.norm())
    return float(torch.stack(lost).mean())


def cut(deltas: dict[str, Delta]) -> tuple[dict[str, Delta], float]:
    """The nearest LoRAs of CUT_RANK, and the share of the change that they leave out, a mean."""
    short = {name: truncate_delta(delta, CUT_RANK) for name, delta in deltas.items()}
    lost = [
        (short[name].dense() - deltas[name].dense()).norm() / deltas[name].dense().norm()
        for name in [*deltas][::THIRD]
    ]
    return short, float(torch.stack(lost).mean())


@contextmanager
def timed(denoiser: ConditionedDenoiser) -> Iterator[list[float]]:
    """While in force, the seconds of processor time that each reading of prompts takes are kept."""
    read, spent = denoiser.condition, list[float]()

    def condition(prompts: Sequence[str]) -> Condition:
        started = time.process_time()
        found = read(prompts)
        spent.append(time.process_time() - started)
        return found

    with patch.object(denoiser, "condition", condition):
        yield spent


def run_case(model: str, method: str, concepts: int) -> dict[str, float]:
    """Erase and write; what that took."""
    kept = [f"other {i}" for i in range(RETAINED)]
    names = [f"name {i}" for i in range(concepts)]
    anchors = kept[: len(names)]
    request = EraseRequest(names, anchors, retain=kept, templates=("a picture of {concept}",))
    config = DiffusionTaskConfig(("unet",), READS_TEXT, size=512)
    pipeline = build(model)
    if model == "sdxl":
        pipeline.to(torch.bfloat16)
    task = DiffusionTask(pipeline, expand(request, None), Sampling(1, 7.5), config)
    before, started, clock = resident("VmRSS"), time.process_time(), time.perf_counter()
    with timed(task.denoiser) as spent:
        erasure: Erasure = methods()[method.partition("-")[0]](task, config_of(method))
    found = {"tokens": TOKENS, "threads": torch.get_num_threads(), "reading": sum(spent)}
    if method == "projection-cut":
        deltas, found["error"] = cut(erasure.deltas)
        erasure = replace(erasure, deltas=deltas)
    if lost := erasure.recipe.get("left_out"):
        found["error"] = sum(lost.values()) / len(lost)
    seconds, peak = time.process_time() - started, resident("VmHWM")
    found["clock"] = time.perf_counter() - clock
    with tempfile.TemporaryDirectory() as folder:
        erasure.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    read = [f"a picture of {name}" for name in kept[:: RETAINED // FIFTY]], captions()
    for which, prompts in zip(SETS, read, strict=True):
        shares = moved(task, erasure.deltas, prompts)
        found |= {which: float(shares.mean()), f"{which}_worst": float(shares.max())}
    found |= {"half_error": error_in_half(erasure.deltas), "model_gb": before / 1e3}
    return found | {"seconds": seconds, "peak_gb": peak / 1e3, "mb": size / 1e6}


def table(ledger: Ledger) -> str:
    """One line a case."""
    titles = ("model", "method", "concepts", "tokens", "seconds", "of reading",
              "by the clock (threads)", "peak GB", "artefact MB", "cut's error",
              "float16's", "retained moved, mean (worst)", "captions")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for model, method, concepts in sorted(ledger, key=lambda key: (*key[:2], int(key[2]))):
        found = ledger[model, method, concepts]
        cells = [str(found.get("tokens", ONCE)), f"{found['seconds']:.1f}", "", ""]
        if "clock" in found:
            cells[2:] = [f"{found['reading']:.1f}", f"{found['clock']:.0f} ({found['threads']})"]
        cells += [f"{found['peak_gb']:.1f}", f"{found['mb']:.1f}"]
        cells += [f"{found['error']:.3f}" if "error" in found else ""]
        if "half_error" in found:
            cells += [f"{found['half_error']:.1e}"]
            cells += [f"{found[w]:.3f} ({found[f'{w}_worst']:.3f})" for w in SETS]
        cells += [""] * (len(titles) - 3 - len(cells))  # of rows that are older than these figures
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
                key = (model, method, str(concepts))
                if key not in ledger and (model, method) not in TOO_LONG:
                    command = [sys.executable, __file__, "--case", *key]
                    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
                    print(*key, done.returncode, flush=True)
    print(table(Ledger(RESULTS)))


def main_case(model: str, method: str, concepts: str) -> None:
    """One case, kept."""
    Ledger(RESULTS)[model, method, concepts] = run_case(model, method, int(concepts))


if __name__ == "__main__":
    main_case(*sys.argv[2:]) if sys.argv[1:2] == ["--case"] else main()
