"""Names as people spell them."""

import unicodedata
from collections.abc import Sequence

SAID = 4  # names that one reads at a glance


def spelt(name: str) -> str:
    """The name in Unicode's composed form, with one blank where there are some within."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def alike(name: str) -> str:
    """What is equal for two names that only capitals, blanks or Unicode's forms tell apart."""
    return spelt(spelt(name).casefold())


def shortened(names: Sequence[str], joined: str = ", ") -> str:
    """The names, or of a long list the first few and how many more there are."""
    if len(names) <= SAID + 1:
        return joined.join(names)
    return joined.join([*names[:SAID], f"{len(names) - SAID} more"])
