"""The bundled model, its judge and the drawings both were trained on."""

from pathlib import Path

FOLDER = Path(__file__).parent
EMOJI = FOLDER / "emoji"
JUDGE = FOLDER / "judge"
