"""What was heard of prompts: what the denoisers are given for them, kept while that holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

Calls = dict[str, dict[str, Any]]
MOST_KEPT = 512  # prompts


@dataclass(frozen=True)
class HeardCondition:
    """What the denoisers were given for each of N prompts, each alone: by name, their arguments."""

    calls: Sequence[Mapping[str, Mapping[str, Any]]]

    def rows(self, chosen: Tensor) -> "HeardCondition":
        """The same of the prompts at these places [n]."""
        return HeardCondition([self.calls[place] for place in chosen.tolist()])


class Heard(dict[str, Calls]):
    """The calls for at most MOST_KEPT prompts, of weights that have not been written into since."""

    _read_by: Sequence[tuple[ReferenceType[Tensor], int]] = ()

    def follow(self, weights: Sequence[Tensor]) -> None:
        """Forget all if other weights read prompts now, or these have changed, or are to learn.

        What is to learn is never known for long: fused optimizers write and do not count it.
        """
        known = len(weights) == len(self._read_by) and all(
            held() is weight and count == _writes(weight)
            for weight, (held, count) in zip(weights, self._read_by, strict=True)
        )
        if not known or any(weight.requires_grad for weight in weights):
            self.clear()
            self._read_by = [(ref(weight), _writes(weight)) for weight in weights]

    def keep(self, prompt: str, calls: Calls) -> None:
        """Note a prompt's calls, in place of the oldest if there are too many."""
        if len(self) >= MOST_KEPT:
            del self[next(iter(self))]
        self[prompt] = calls


def _writes(weight: Tensor) -> int:
    """How often it has been written into, as far as that is counted."""
    return 0 if weight.is_inference() else weight._version
