"""The erasures that ship with the package, and what was measured of them before."""

import json
from pathlib import Path

from erase.app.visitors import Made
from erase.bundled import ATTACKS, DIGITS, ERASURES
from erase.evaluate.reports import AttackReport, GapReport
from erase.models.opening import BUNDLED

READY = ("ghost", "ink style", "dagger+bomb")
STORED = "Stored: measured before the package was published, under the protocol each figure tells."


def ready_folders(model: str) -> list[Path]:
    """The folders of the erasures of a bundled model, the first to show first; none of another."""
    return [ERASURES / name for name in READY] if model in BUNDLED else []


def stored_attacks(made: Made) -> tuple[AttackReport, Path] | None:
    """The attack report of a ready erasure and its folder of pictures; None for any other."""
    folder = ATTACKS / made.name
    if made.folder != ERASURES / made.name or not folder.is_dir():
        return None
    record = json.loads((folder / "attacks.json").read_text(encoding="utf-8"))
    return AttackReport.from_json(record), folder


def stored_digits() -> tuple[GapReport, Path]:
    """The report of a class of digits that was forgotten, and its folder of pictures."""
    record = json.loads((DIGITS / "report.json").read_text(encoding="utf-8"))
    return GapReport.from_json(record), DIGITS
