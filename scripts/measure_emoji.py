"""Measure the bundled models: the judge on real drawings, the pipeline on every object and style.

Run: `python scripts/measure_emoji.py --out runs/quality`; writes quality.json and grid.png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from emoji.canvas import EmojiCanvas, random_placement
from emoji.diffusion import build_catalogue
from emoji.judge import strong_pictures
from torch import Tensor

from erase.bundled import EMOJI, JUDGE
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.judges import judge_templates
from erase.evaluate.reports import wilson_share
from erase.models.opening import load_model
from erase.prompts.seeds import MATRIX_SEED
from erase.support.pictures import save_grid
from erase.tasks.diffusion.sampling import draw

HELD_OUT_SEED = 424_242


def accuracies(judge: ClipJudge, pictures: Tensor, canvas: EmojiCanvas) -> dict[str, dict]:
    """Object and style accuracy of one picture a cell, in the canvas' order."""
    embeddings = judge.embed(pictures)
    objects = judge.classify(embeddings, "object", canvas.objects)
    styles = judge.classify(embeddings, "style", canvas.styles)
    hits = {
        "object": [s == c.object for s, c in zip(objects, canvas.cells, strict=True)],
        "style": [s == c.style for s, c in zip(styles, canvas.cells, strict=True)],
    }
    return {kind: wilson_share(of_kind).to_json() for kind, of_kind in hits.items()}


def held_out(judge: ClipJudge, canvas: EmojiCanvas) -> dict[str, dict]:
    """The judge on one unseen augmentation of every drawing: as the pipeline's data, and strong."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    torch.manual_seed(HELD_OUT_SEED)
    cells = torch.arange(len(canvas))
    placement, _ = random_placement(len(canvas), generator)
    return {
        "small_augmentation": accuracies(judge, canvas.render(cells, placement), canvas),
        "strong_augmentation": accuracies(judge, strong_pictures(canvas, cells, generator), canvas),
    }


def main() -> None:
    """Measure both and write the figures with their protocol."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(EMOJI))
    parser.add_argument("--judge", default=str(JUDGE))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--every", type=int, default=1, help="draw every n-th cell only")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_model(args.model)
    judge = ClipJudge(f"local-dir:{args.judge}", judge_templates(model.catalogue))
    drawings = EmojiCanvas()
    widest = ClipJudge(f"local-dir:{args.judge}", judge_templates(build_catalogue(drawings)))
    canvas = EmojiCanvas(model.catalogue.objects, model.catalogue.styles)
    canvas.cells = canvas.cells[:: args.every]
    prompts = [model.catalogue.prompt(cell.object, cell.style) for cell in canvas.cells]
    seeds = range(MATRIX_SEED, MATRIX_SEED + len(prompts))
    sampling = replace(model.sampling, steps=args.steps, guidance_scale=args.guidance_scale)
    pictures = draw(model.pipeline, prompts, seeds, sampling)
    quality = {
        "judge": {"real_drawings": held_out(widest, drawings), "seed": HELD_OUT_SEED},
        "pipeline": {
            **accuracies(judge, pictures, canvas),
            "protocol": {
                "prompt": model.catalogue.templates[0],
                "steps": args.steps,
                "guidance_scale": args.guidance_scale,
                "scheduler": type(model.pipeline.scheduler).__name__,
                "seeds": f"one a cell from {MATRIX_SEED}",
                "labels": [len(canvas.objects), len(canvas.styles)],
            },
        },
    }
    (args.out / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    save_grid(pictures, args.out / "grid.png", columns=32)
    print(json.dumps(quality, indent=2))


if __name__ == "__main__":
    main()
