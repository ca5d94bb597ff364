"""Train the bundled models: `python scripts/train_emoji.py STAGE --run runs/NAME`.

Every stage goes on from its newest checkpoint. The VAE and the judge see all objects; the
diffusion stage takes --objects, --exclude-objects and --exclude-styles for retrained oracles. The
single-stream stage trains a ZImagePipeline of 32 objects in 4 styles, which is not bundled, around
the bundled VAE and text encoder.
"""

import argparse
from pathlib import Path

from emoji.canvas import EmojiCanvas
from emoji.diffusion import train_diffusion
from emoji.judge import train_judge
from emoji.loop import Schedule
from emoji.single_stream import STYLES, objects_of, train_single_stream
from emoji.vae import train_vae

BUNDLED = Path(__file__).parent.parent / "erase" / "bundled"


def main() -> None:
    """Parse the stage and train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "judge", "diffusion", "single-stream"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="judge, diffusion")
    parser.add_argument("--go-on", action="store_true", help="start from what is saved")
    parser.add_argument("--out", type=Path, help="folder for emoji/ and judge/, if not the package")
    parser.add_argument("--objects", choices=("core", "all"), default="all")
    parser.add_argument("--exclude-objects", nargs="*", default=[])
    parser.add_argument("--exclude-styles", nargs="*", default=[])
    args = parser.parse_args()
    if args.exclude_objects + args.exclude_styles and args.out is None:
        parser.error("a model without some concepts needs its own --out")
    if args.stage == "single-stream" and args.out is None:
        parser.error("the single-stream model is not bundled; it needs its own --out")
    out = args.out or BUNDLED
    vae_folder = BUNDLED / "emoji" / "vae"
    schedule = Schedule(args.steps, args.learning_rate)
    if args.stage == "vae":
        train_vae(args.run, args.steps, out / "emoji" / "vae")
    elif args.stage == "judge":
        train_judge(args.run, schedule, out / "judge", args.go_on)
    elif args.stage == "single-stream":
        train_single_stream(args.run, schedule, chosen_canvas(args), BUNDLED / "emoji", out)
    else:
        canvas = chosen_canvas(args)
        start = out / "emoji" if args.go_on else None
        train_diffusion(args.run, schedule, canvas, vae_folder, out / "emoji", start)


def chosen_canvas(args: argparse.Namespace) -> EmojiCanvas:
    """The canvas without the excluded objects and styles."""
    canvas = EmojiCanvas()
    unknown = {*args.exclude_objects} - {*canvas.objects} | {*args.exclude_styles} - {
        *canvas.styles
    }
    if unknown:
        raise SystemExit(f"There is nothing called {', '.join(sorted(unknown))} to exclude.")
    names = canvas.core_objects if args.objects == "core" else canvas.objects
    styles = canvas.styles
    if args.stage == "single-stream":
        names, styles = objects_of(canvas), STYLES
    objects = [name for name in names if name not in args.exclude_objects]
    styles = [name for name in styles if name not in args.exclude_styles]
    return EmojiCanvas(objects, styles)


if __name__ == "__main__":
    main()
