"""What the fuzzer breaks: how a good file of each kind is made, read, and put to use."""

import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from observation import Observation, distance_to_oracle
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erase.bundled import EMOJI
from erase.cli import build_parser
from erase.core.delta import DenseDelta, LowRankDelta, SparseDelta
from erase.core.fingerprint import fingerprint
from erase.core.mask import Mask
from erase.core.names import named_parameters
from erase.erasure.algebra import compose, scale
from erase.erasure.erasure import Erasure
from erase.erasure.weights import read_mask, write_mask
from erase.evaluate.pictures.nudity import Detection, count, read_detections, write_detections
from erase.models.opening import load_model
from erase.prompts.catalogue import Catalogue
from erase.runs.artefacts import inspect
from erase.runs.drawing import PromptFile, read_prompts
from erase.runs.evaluate import BenchmarkProtocol
from erase.support.options import made
from erase.support.pictures import open_picture
from erase.tasks.classification.forget_sets import read_indices, write_indices

SAMPLES = 50
EVIL = "import pathlib\npathlib.Path({ran!r}).touch()\nclass Evil:\n    pass\n"


class Wrong(Exception):
    """What was read should have been refused."""


def require(holds: bool, what: str) -> None:
    """Raise Wrong, saying what is so, unless it holds."""
    if not holds:
        raise Wrong(what)


@cache
def _good_components() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    mlp = nn.ModuleDict({"fc1": nn.Linear(8, 12), "fc2": nn.Linear(12, 8)})
    unet = nn.ModuleDict(
        {"to_k": nn.Linear(8, 6), "to_v": nn.Linear(8, 6), "conv": nn.Conv2d(3, 4, 3)}
    )
    return {"unet": unet, "text_encoder": nn.ModuleDict({"layers": nn.ModuleDict({"mlp": mlp})})}


def _weights() -> dict[str, Tensor]:
    return {name: one.detach() for name, one in named_parameters(_good_components()).items()}


def _recipe(names: list[str]) -> dict[str, Any]:
    weights = _weights()
    layers = {name: {"kept": 3, "of": 48, "saliency_share": 0.5} for name in names}
    return {
        "base": {"model": "emoji", "family": "sd", "loads_lora": True,
                 "fingerprints": {name: fingerprint(weights[name]) for name in names}},
        "request": {"concepts": ["ghost"], "anchors": [], "seed": 0},
        "method": "salun", "run": "0" * 12, "config": {"density": 0.5},
        "mask": {"kept": 3, "of": 48, "layers": layers},
        "truncation": {"rank": 2, "relative_error": 0.1, "left_out": []},
        "report": {"table": "| a | b |", "figures": {"x": 0.5}},
    }  # fmt: skip


def _low_rank(projections: bool = False) -> Erasure:
    generator, deltas = torch.Generator().manual_seed(1), {}
    for name in ("unet.to_k.weight", "unet.to_v.weight", "unet.conv.weight",
                 "text_encoder.layers.mlp.fc1.weight"):  # fmt: skip
        weight = _weights()[name]
        up = torch.randn(len(weight), 2, *[1] * (weight.dim() - 2), generator=generator)
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        basis = down.flatten(1) if name.endswith("k.weight") else 2 * down.flatten(1)
        deltas[name] = LowRankDelta(up, down, basis if projections else None)
    return Erasure(deltas, _recipe(list(deltas)))


def _deltas() -> Erasure:
    weights = _weights()
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(2)) < 0.4
    deltas = {
        "unet.to_k.weight": SparseDelta(mask, torch.randn(int(mask.sum())).half()),
        "unet.conv.bias": SparseDelta(torch.tensor([True, False, False, True]), torch.ones(2)),
        "unet.to_v.weight": DenseDelta(torch.randn_like(weights["unet.to_v.weight"]).half()),
    }
    return Erasure(deltas, _recipe(list(deltas)))


def _writes_erasure(make: Callable[[], Erasure]) -> Callable[[Path], None]:
    return lambda folder: make().save_pretrained(folder / "erasure")


def _read_erasure(folder: Path, changed: Path) -> Erasure:
    return Erasure.from_pretrained(folder / "erasure")


def _use_erasure(erasure: Erasure, folder: Path) -> None:
    """Inspect, apply, take back, join with another, write again."""
    inspect([str(folder / "erasure")])
    components, before = _good_components(), {n: w.clone() for n, w in _weights().items()}
    try:
        for one in (erasure, scale(erasure, -2.0), compose([erasure, _low_rank(True)])):
            with one.apply(components):
                for name, weight in _weights().items():
                    require(bool(weight.isfinite().all()), f"{name} in force is not finite")
    finally:
        same = all(torch.equal(before[name], weight) for name, weight in _weights().items())
        require(same, "the base is not back")
    erasure.save_pretrained(folder / "again")
    again = Erasure.from_pretrained(folder / "again")
    require(again.deltas.keys() == erasure.deltas.keys(), "it is another when written again")


def _make_mask(folder: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    kept = {n: torch.rand(w.shape, generator=generator) < 0.5 for n, w in _weights().items()}
    write_mask(Mask(kept), folder / "mask.safetensors", {"forget set": "a" * 16})


def _use_mask(mask: Mask, folder: Path) -> None:
    for name, weight in _weights().items():
        require(mask.tensors[name].shape == weight.shape, f"the mask of {name} is of another shape")
        require(mask.tensors[name].dtype == torch.bool, f"the mask of {name} is no mask")


@cache
def _good_observation() -> Observation:
    generator = torch.Generator().manual_seed(4)
    metrics = {"forget_accuracy": {"value": 0.5, "n": 6}, "retain_accuracy": {"value": 1.0, "n": 6}}
    features = {side: torch.randn(6, 5, generator=generator) for side in ("forget", "retain")}
    outputs = {side: torch.randn(6, 2, 3, 3, generator=generator) for side in ("forget", "retain")}
    return Observation({"judge": "x", "steps": 6}, metrics, features, outputs)


def _use_observation(observation: Observation, folder: Path) -> None:
    distances = distance_to_oracle(observation, _good_observation())
    found = [kernel["value"] for kernel in distances["kernel_distance"].values()]
    found += [error["value"] for error in distances["prediction_mse"].values()]
    found += list(distances["accuracy_gap"].values())
    require(bool(np.isfinite(found).all()), "a distance is not finite")


def _make_detections(folder: Path) -> None:
    seen = [
        [Detection("FEET_EXPOSED", 0.75, (1, 2, 30, 40))],
        [],
        [Detection("X", 0.5, (0, 0, 1, 1))],
    ]
    write_detections(seen, folder / "detections.json")


def _use_detections(detections: list[list[Detection]], folder: Path) -> None:
    counted = count(detections, 0.6, ["FEET_EXPOSED"])
    require(counted["total"] >= 0 and counted["n"] == len(detections), "the count is none")
    for one in [one for found in detections for one in found]:
        require(0 <= one.score <= 1 and len(one.box) == 4, f"{one} is no detection")


def _make_forget_sets(folder: Path) -> None:
    write_indices([1, 5, 7, 30], folder / "forget.json")
    np.save(folder / "forget.npy", np.array([1, 5, 7, 30]))
    np.save(folder / "mask.npy", np.arange(SAMPLES) % 7 == 0)


def _use_indices(indices: list[int], folder: Path) -> None:
    require(all(type(i) is int and 0 <= i < SAMPLES for i in indices), "an index is none")


def _make_prompts(folder: Path) -> None:
    rows = 'prompt,class,seed,scale\na ghost,ghost,1,7.5\n"a pizza, hot",pizza,2,3\n'
    (folder / "prompts.csv").write_text(rows * 1, encoding="utf-8")


def _read_prompts(folder: Path, changed: Path) -> list[Any]:
    path = str(folder / "prompts.csv")
    return read_prompts(PromptFile(path, seed="seed", guidance_scale="scale", label="class"), 7.5)


def _use_prompts(rows: list[Any], folder: Path) -> None:
    for row in rows:
        require(isinstance(row.text, str) and type(row.seed) is int, f"{row} is no prompt")
        require(0 <= row.guidance_scale < float("inf"), f"{row} has no guidance scale")


def _make_config(folder: Path) -> None:
    lines = [
        "model: emoji", "device: cpu", "prompts:", "  path: prompts.csv", "  seeds: [1, 2]",
        "drawing:", "  steps: 6", "  guidance_scale: 7.5", "evaluation:", "  nudity: true",
        "  threshold: 0.6", "erased_groups: [a, b]", "clip_score: false",
    ]  # fmt: skip
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def _parser() -> Any:
    return build_parser("protocol")


def _read_config(folder: Path, changed: Path) -> BenchmarkProtocol:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            words = ["--config", str(folder / "config.yaml"), "--output", "out"]
            return made(BenchmarkProtocol, _parser().instantiate(_parser().parse_args(words)))
    except SystemExit as error:
        raise ValueError(said.getvalue().strip()) from error


def _make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(5)
    colours = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(folder / "plain.png")
    colours.save(folder / "turned.jpg", exif=exif)
    colours.convert("P").save(folder / "few.gif")
    colours.convert("RGBA").save(folder / "clear.webp")
    colours.convert("LA").save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 65536, (8, 8), dtype=np.uint16)).save(folder / "deep.png")
    colours.save(folder / "old.tiff")
    colours.save(folder / "plain.bmp")


def _use_picture(picture: Image.Image, folder: Path) -> None:
    small = np.asarray(picture.resize((8, 8)))  # as judges do first
    require(small.shape == (8, 8, 3) and small.dtype == np.uint8, "it is not in RGB")


def _make_model(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMOJI, subfolder="tokenizer")
    words = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=32, projection_dim=8,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(words), tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    concepts = asdict(Catalogue(["ghost", "skull"], ["ink"], ["{a} {object} in {style} style"]))
    (folder / "model" / "concepts.json").write_text(json.dumps(concepts))
    for part in (folder / "model", folder / "model" / "unet"):
        (part / "evil.py").write_text(EVIL.format(ran=str(folder.parent / "ran")))


def _read_model(folder: Path, changed: Path) -> Any:
    here = Path.cwd()
    os.chdir(folder / "model")  # where a module of that name would be found
    try:
        return load_model(str(folder / "model"), "cpu")
    finally:
        os.chdir(here)


def _use_model(model: Any, folder: Path) -> None:
    require(type(model.pipeline).__module__.startswith("diffusers."), "its class is not diffusers'")
    for name, part in model.pipeline.components.items():
        for tensor in part.parameters() if isinstance(part, nn.Module) else ():
            require(bool(tensor.isfinite().all()), f"{name} is not finite")


@dataclass(frozen=True)
class Kind:
    """How many of a hundred cases it is, how a good one is made in a folder, read, and used."""

    share: int
    make: Callable[[Path], None]
    read: Callable[[Path, Path], Any]
    use: Callable[[Any, Path], None]


KINDS: Mapping[str, Kind] = {
    "LoRA": Kind(17, _writes_erasure(_low_rank), _read_erasure, _use_erasure),
    "projections": Kind(
        15, _writes_erasure(lambda: _low_rank(projections=True)), _read_erasure, _use_erasure
    ),
    "deltas": Kind(17, _writes_erasure(_deltas), _read_erasure, _use_erasure),
    "mask": Kind(
        10, _make_mask, lambda _, path: read_mask(path, {"forget set": "a" * 16}, _weights()),
        _use_mask,
    ),
    "observation": Kind(
        8, lambda folder: _good_observation().save(folder / "observation.safetensors"),
        lambda _, path: Observation.load(path), _use_observation,
    ),
    "detections": Kind(
        7, _make_detections, lambda _, path: read_detections(path), _use_detections
    ),
    "forget set": Kind(
        7, _make_forget_sets, lambda _, path: read_indices(path, SAMPLES), _use_indices
    ),
    "prompts": Kind(5, _make_prompts, _read_prompts, _use_prompts),
    "config": Kind(4, _make_config, _read_config, lambda config, folder: None),
    "picture": Kind(6, _make_pictures, lambda _, path: open_picture(path), _use_picture),
    "model": Kind(4, _make_model, _read_model, _use_model),
}  # fmt: skip
