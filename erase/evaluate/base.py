"""What an evaluator is: something that looks at pictures and names the protocol of its figures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image


class Evaluator(Protocol):
    """Figures of some pictures, and all that they depend on besides the pictures."""

    name: str

    def protocol(self) -> dict[str, Any]:
        """What the figures mean, as JSON: models, thresholds, labels."""

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """The figures as JSON; raw findings and pictures of them may go into `folder`."""


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for equal protocols and hardly for others."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]
