"""Adversaries that any trained method can learn against; none of them knows which."""

from typing import Literal

from erase.tasks.diffusion.adversaries.base import Adversary
from erase.tasks.diffusion.adversaries.prefix import Prefix
from erase.tasks.diffusion.adversaries.states import States
from erase.tasks.diffusion.adversaries.target import Target
from erase.tasks.diffusion.adversaries.word import Word

AdversaryName = Literal["prefix", "word", "states", "target"]
ADVERSARIES: dict[AdversaryName, type[Adversary]] = {
    "prefix": Prefix,
    "word": Word,
    "states": States,
    "target": Target,
}
