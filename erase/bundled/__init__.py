"""The bundled model and judge, the drawings both learned from, and erasures of the model."""

from pathlib import Path

FOLDER = Path(__file__).parent
EMOJI = FOLDER / "emoji"
JUDGE = FOLDER / "judge"
ERASURES = FOLDER / "erasures"
ATTACKS = FOLDER / "attacks"
DIGITS = FOLDER / "digits"
