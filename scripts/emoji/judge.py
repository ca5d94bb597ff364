"""The bundled judge: a small open_clip model trained on the drawings, apart from the pipeline."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2

from emoji.canvas import OBJECT_TEMPLATES, PICTURE_SIZE, TEMPLATES, EmojiCanvas, Placement, caption
from emoji.loop import Schedule, step_generator, train

SEED = 77
WEIGHTS = "open_clip_model.safetensors"
PAIRS = 128
CHUNK = 16
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "layers": [1, 1, 1, 1],
            "width": 32,
            "image_size": PICTURE_SIZE,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
}
STRONG = v2.Compose(
    [
        v2.RandomRotation(12, interpolation=v2.InterpolationMode.BILINEAR, fill=1.0),
        v2.ColorJitter(0.2, 0.2, 0.2, 0.03),
        v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], 0.5),
        v2.RandomApply([v2.GaussianNoise(sigma=0.05)], 0.3),
        v2.RandomErasing(0.2, scale=(0.02, 0.1)),
    ]
)


def strong_pictures(canvas: EmojiCanvas, cells: Tensor, generator: torch.Generator) -> Tensor:
    """Place cells [N] roughly, on any colour, then distort them: [N, 3, 64, 64] in 0..1."""
    count = len(cells)
    any_colour = 1 - 0.6 * torch.rand(count, 3, generator=generator)
    any_colour[torch.rand(count, generator=generator) < 0.5] = 1.0
    placement = Placement(
        scale=0.7 + 0.4 * torch.rand(count, generator=generator),
        shift=0.3 * torch.rand(count, 2, generator=generator) - 0.15,
        background=any_colour,
    )
    chunks = canvas.render(cells, placement).split(CHUNK)
    return torch.cat([STRONG(chunk) for chunk in chunks]).clamp(0, 1)


def pairs_of_step(
    canvas: EmojiCanvas, step: int, generator: torch.Generator
) -> tuple[Tensor, list[str]]:
    """Cells and captions without twins, of one of three kinds in turn.

    Some objects in all styles, so that style must be told apart on the same object; one drawing of
    each object under a caption without a style; any cells.
    """
    count, styles = len(canvas.objects), len(canvas.styles)
    if step % 4 == 3:
        picks = torch.randint(styles, (count,), generator=generator)
        cells, templates = torch.arange(count) * styles + picks, OBJECT_TEMPLATES
    elif step % 4 == 1:
        cells, templates = torch.randperm(len(canvas), generator=generator)[:PAIRS], TEMPLATES
    else:
        objects = torch.randperm(count, generator=generator)[: PAIRS // styles]
        cells = (objects[:, None] * styles + torch.arange(styles)).flatten()
        templates = TEMPLATES
    chosen = torch.randint(len(templates), (len(cells),), generator=generator).tolist()
    drawn = [canvas.cells[i] for i in cells.tolist()]
    return cells, [caption(cell, templates[t]) for cell, t in zip(drawn, chosen, strict=True)]


def train_judge(run: Path, schedule: Schedule, out: Path, go_on: bool = False) -> None:
    """Train with open_clip's contrastive loss and save in its `local-dir:` layout.

    `go_on` starts from the judge saved in `out` instead of untrained.
    """
    torch.manual_seed(SEED)
    canvas = EmojiCanvas()
    model = open_clip.CLIP(**CONFIG["model_cfg"], output_dict=True)
    if go_on:
        model.load_state_dict(load_file(out / WEIGHTS))
    model = model.to(memory_format=torch.channels_last)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    contrast = ClipLoss()

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED + go_on, step)
        torch.manual_seed((SEED + go_on) * 1_000_003 + step)
        cells, captions = pairs_of_step(canvas, step, generator)
        pictures = strong_pictures(canvas, cells, generator)
        pictures = (2 * pictures - 1).to(memory_format=torch.channels_last)
        features = model(pictures, tokenizer(captions))
        return contrast(**features, output_dict=False)

    def clamp_scale(step: int) -> None:
        model.logit_scale.data.clamp_(0, 4.6052)

    train(
        run,
        schedule,
        {"judge": model},
        model.parameters(),
        loss,
        clamp_scale,
        weight_decay=0.05,
    )
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.half().state_dict().items()}
    save_file(weights, out / WEIGHTS)
    (out / "open_clip_config.json").write_text(
        json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8"
    )
