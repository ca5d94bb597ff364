"""The bundled model and judge, the drawings both learned from, erasures of it, and names."""

from pathlib import Path

FOLDER = Path(__file__).parent
EMOJI = FOLDER / "emoji"
JUDGE = FOLDER / "judge"
ERASURES = FOLDER / "erasures"
ATTACKS = FOLDER / "attacks"
DIGITS = FOLDER / "digits"
ORIGINAL_LAYERS = FOLDER / "data/original_layers.json"  # by diffusers' names of them
