"""Peak memory of projection where the denoiser stays in its files, at SDXL's and FLUX.1's shapes.

Run: `python benchmarks/lazy_memory.py [sdxl] [flux]`. Pipelines come from the published configs in
bfloat16: text encoders, and the weights through which text enters, are random; all else of the
denoiser is a hole in its sparse file, and the VAE is a config alone, since neither is ever read.
FLUX.1's T5 has 2 of its 24 layers. A process of its own writes each model, another erases without
evaluation on the CPU. Its peak is told twice: Linux's VmHWM counts pages of mapped files too (the
libraries' code, weights as they lie in their files), which the kernel takes back at will; RssAnon,
asked for every 5 ms, is what is the process' own.
"""

import json
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from core_ratios import resident
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from family_memory import CLIP_G, CLIP_L, SDXL
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from erase.bundled import EMOJI
from erase.core.names import filter_names
from erase.models.family import FAMILIES
from erase.models.stored import tensors_in
from erase.prompts.request import EraseRequest
from erase.runs.erase import RunConfig, run

HALF = torch.bfloat16
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
}  # fmt: skip
T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64,
    "num_layers": 2, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def write(model: str, folder: Path) -> None:
    """Write a pipeline folder, one part after the other."""
    torch.manual_seed(0)
    torch.set_default_dtype(HALF)
    words = CLIPTokenizer.from_pretrained(EMOJI, subfolder="tokenizer", model_max_length=77)
    words.save_pretrained(folder / "tokenizer")
    index: dict[str, Any] = {"tokenizer": ["transformers", "CLIPTokenizer"]}

    def clip(name: str, kind: type[nn.Module], shape: dict[str, int]) -> None:
        config = CLIPTextConfig(
            vocab_size=49408, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
            **shape,
        )  # fmt: skip
        kind(config).save_pretrained(folder / name)
        index[name] = ["transformers", kind.__name__]

    clip("text_encoder", CLIPTextModel, CLIP_L)
    scheduler: Any = DDIMScheduler() if model == "sdxl" else FlowMatchEulerDiscreteScheduler()
    with torch.device("meta"):
        if model == "sdxl":
            denoiser, vae = UNet2DConditionModel(**SDXL), AutoencoderKL(**VAE)
        else:
            denoiser = FluxTransformer2DModel(guidance_embeds=True)
            vae = AutoencoderKL(**VAE, latent_channels=16, shift_factor=0.1159)
    if model == "sdxl":
        clip("text_encoder_2", CLIPTextModelWithProjection, CLIP_G)
        words.save_pretrained(folder / "tokenizer_2")
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
        special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        T5Tokenizer(vocab=[*special, *letters], extra_ids=0).save_pretrained(folder / "tokenizer_2")
        T5EncoderModel(T5Config(**T5_XXL)).save_pretrained(folder / "text_encoder_2")
        index["text_encoder_2"] = ["transformers", "T5EncoderModel"]
        index["tokenizer_2"] = ["transformers", "T5Tokenizer"]
    family = FAMILIES[model]
    for name, part in ((family.denoiser, denoiser), ("vae", vae), ("scheduler", scheduler)):
        part.save_config(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    write_denoiser(denoiser, family.denoiser, entering(model, denoiser), folder)
    index["_class_name"] = family.pipeline.__name__
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def entering(model: str, denoiser: nn.Module) -> list[str]:
    """The names of the denoiser's weights through which text enters."""
    family = FAMILIES[model]
    weights = {f"{family.denoiser}.{name}": None for name in denoiser.state_dict()}
    names = [
        name for patterns in family.enters.values() for name in filter_names(weights, patterns)
    ]
    return [name.partition(".")[2] for name in names]


def write_denoiser(denoiser: nn.Module, name: str, filled: list[str], folder: Path) -> None:
    """A safetensors file of the denoiser's shapes that holds these tensors, and holes."""
    header, end = {}, 0
    for tensor, values in denoiser.state_dict().items():
        start, end = end, end + HALF.itemsize * values.numel()
        shape = list(values.shape)
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / name / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)
        for tensor in filled:
            file.seek(8 + len(text) + header[tensor]["data_offsets"][0])
            values = torch.randn(header[tensor]["shape"]) * 0.02
            file.write(values.view(torch.int16).numpy().tobytes())


@contextmanager
def highest(kind: str) -> Iterator[list[float]]:
    """The highest of a kind of memory so far, in MiB, while the work goes on."""
    found, done = [resident(kind)], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], resident(kind))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        done.set()
        watching.join()


def erase(model: str, folder: Path) -> str:
    """Erase; peak memory beside what the text encoders and the weights that were read hold."""
    imported, own = resident("VmHWM"), resident("RssAnon")
    request = EraseRequest(["ghost"], retain=["pizza", "rocket"])
    config = RunConfig(
        request, str(folder), "projection", evaluate=False, device="cpu", dtype="bfloat16"
    )
    with highest("RssAnon") as anonymous:
        run(config, folder / "erasure")
    peak = resident("VmHWM")
    parts = [tensors_in(path) for path in folder.glob("text_encoder*/*.safetensors")]
    encoders = sum(HALF.itemsize * w.numel() for part in parts for w in part.values()) / 2**20
    (path,) = (folder / FAMILIES[model].denoiser).glob("*.safetensors")
    stored = path.stat().st_size / 2**20
    return (
        f"imports_mib={imported:.0f} text_encoders_mib={encoders:.0f} denoiser_mib={stored:.0f} "
        f"peak_mib={peak:.0f} above_encoders_gb={(peak - encoders) * 2**20 / 1e9:.2f} "
        f"above_both_gb={(peak - encoders - imported) * 2**20 / 1e9:.2f} "
        f"own_imports_mib={own:.0f} own_peak_mib={anonymous[0]:.0f}"
    )


def main(models: list[str]) -> None:
    """Each model in a folder that goes, each step in its own process."""
    for model in models or ["sdxl", "flux"]:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("write", "erase"):
                command = [sys.executable, __file__, step, model, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(model, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["erase"]:
        print(erase(sys.argv[2], Path(sys.argv[3])))
    else:
        main(sys.argv[1:])
