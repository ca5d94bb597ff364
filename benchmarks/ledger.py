"""Figures by key in one JSON file, written after every run, so that a benchmark can go on."""

import json
from pathlib import Path
from typing import Any


class Ledger:
    """A dictionary on disk; several parts of a key are joined by ` | `."""

    def __init__(self, path: Path):
        self._path = path
        self._figures = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return _joined(key) in self._figures

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self._figures[_joined(key)]

    def __setitem__(self, key: tuple[Any, ...], figures: Any) -> None:
        self._figures[_joined(key)] = figures
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text(json.dumps(self._figures, indent=1, sort_keys=True) + "\n")
        partial.rename(self._path)


def _joined(key: tuple[Any, ...]) -> str:
    return " | ".join(map(str, key))
