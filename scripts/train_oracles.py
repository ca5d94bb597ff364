"""Train models that never saw some concepts: `python scripts/train_oracles.py --run FOLDER`.

One text encoder and UNet of the bundled recipe learn, from scratch, without any of the concepts;
then each oracle goes on from them with everything but its own concept. So none ever saw what it
stands for not knowing (the VAE and the tokenizer's vocabulary, which all share, did), and what they
share is trained once. Their steps are fewer than the bundled pipeline's 21,500, which shows in
distances to them. Every part goes on from its newest checkpoint; those that stand whole under
`FOLDER/NAME/model` are left alone. `--trunk oracles/none_of_them` leaves the shared part out.
"""

import argparse
from pathlib import Path

from emoji.canvas import EmojiCanvas
from emoji.diffusion import train_diffusion
from emoji.loop import Schedule

from erase.bundled import EMOJI
from erase.prompts.catalogue import FILE, Catalogue

ORACLES = {"ghost": ["ghost"], "ink": ["ink"], "weapons": ["dagger", "bomb"]}
STEPS = {"ghost": 3_000, "ink": 2_000, "weapons": 2_000}
TRUNK = "none_of_them"
TRUNK_SCHEDULE = Schedule(5_000, 1e-3, decay=0)


def canvas_without(names: list[str]) -> EmojiCanvas:
    """The bundled pipeline's canvas without these objects and styles."""
    whole = EmojiCanvas()
    kept = ([name for name in of if name not in names] for of in (whole.core_objects, whole.styles))
    return EmojiCanvas(*kept)


def trained(run: Path, schedule: Schedule, without: list[str], start: Path | None = None) -> Path:
    """The folder of a pipeline trained without these concepts."""
    out = run / "model"
    if not (out / FILE).exists():
        train_diffusion(run, schedule, canvas_without(without), EMOJI / "vae", out, start)
    return out


def main() -> None:
    """Train what is missing of the chosen oracles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--oracles", nargs="*", choices=list(ORACLES), default=list(ORACLES))
    parser.add_argument("--trunk", type=Path, help="a pipeline that saw none of them, if there is")
    args = parser.parse_args()
    everything = [name for names in ORACLES.values() for name in names]
    trunk = args.trunk or trained(args.run / TRUNK, TRUNK_SCHEDULE, everything)
    known = Catalogue.of_model(trunk)
    if seen := {*everything} & {*known.objects, *known.styles}:
        parser.error(f"the pipeline in {trunk} was trained on {', '.join(sorted(seen))}")
    for name in args.oracles:
        schedule = Schedule(STEPS[name], 8e-4, decay=0.75)
        trained(args.run / name, schedule, ORACLES[name], trunk)


if __name__ == "__main__":
    main()
