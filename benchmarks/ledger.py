"""Figures by key in one JSON file, written after every run, so that a benchmark can go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from erase.support.files import write_text

ONCE = "once"  # starts the keys of what was measured once, beside the rows


class Ledger:
    """A dictionary on disk; several parts of a key are joined by ` | `.

    Several processes may write different keys of one file.
    """

    def __init__(self, path: Path):
        self._path, self._figures = path, {}
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            self._figures = json.loads(self._path.read_text(encoding="utf-8"))

    def require(self, protocol: dict[str, Any], *part: str) -> None:
        """Note what a part's figures depend on; SystemExit if the file's were made otherwise."""
        key = (*part, "protocol")
        if key not in self:
            self[key] = json.loads(json.dumps(protocol))
        elif self[key] != json.loads(json.dumps(protocol)):
            raise SystemExit(f"{self._path} was made under another protocol; move it away.")

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return _joined(key) in self._figures

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (tuple(key.split(" | ")) for key in self._figures)

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self._figures[_joined(key)]

    def get(self, key: tuple[Any, ...], otherwise: Any) -> Any:
        """The figures of a key, or something else if there are none."""
        return self._figures.get(_joined(key), otherwise)

    def __setitem__(self, key: tuple[Any, ...], figures: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            self._read()
            self._figures[_joined(key)] = figures
            write_text(self._path, _written(self._figures))


def measured_once(ledger: Ledger) -> str:
    """What was measured once, as a list: figures, protocol, n, seeds, interval."""
    lines = []
    for key in ledger:
        if key[0] == ONCE:
            known = ledger[key]
            figures = ", ".join(f"{name} {value}" for name, value in known["figures"].items())
            told = [f"{part}: {known[part]}" for part in ("protocol", "n", "seeds", "interval")]
            lines.append(f"- {key[1]}: {figures}. {'; '.join(told)}.")
    return "".join(f"{line}\n" for line in lines)


def _written(figures: dict[str, Any]) -> str:
    """JSON with one figure a line."""
    lines = (
        f"{json.dumps(key)}: {json.dumps(figures[key], sort_keys=True)}" for key in sorted(figures)
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _joined(key: tuple[Any, ...]) -> str:
    return " | ".join(map(str, key))
