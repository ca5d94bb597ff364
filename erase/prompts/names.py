"""Names as people spell them."""

import unicodedata


def spelt(name: str) -> str:
    """The name in Unicode's composed form, with one blank where there are some within."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def alike(name: str) -> str:
    """What is equal for two names that only capitals, blanks or Unicode's forms tell apart."""
    return spelt(spelt(name).casefold())
