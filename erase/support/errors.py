"""What an error says, for a sentence of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from zipfile import BadZipFile

from safetensors import SafetensorError

# What files, disks and paths can do to any command, beside what is refused by a ValueError.
OF_FILES = (OSError, RecursionError, BadZipFile, SafetensorError)
FULL = (ENOSPC, EDQUOT, EFBIG)
LONGEST = 100  # letters


def first_line(error: Exception) -> str:
    """The first line of what an error says, cut if it is long, or its kind if it says nothing."""
    return cut((str(error).strip() or type(error).__name__).splitlines()[0])


@contextmanager
def refused(what: str, mend: str, *kinds: type[Exception]) -> Iterator[None]:
    """Any error within, or one of these kinds, is a ValueError: what, why, and if there is a mend.

    Without one the sentence is part of another.
    """
    kinds = kinds or (Exception,)
    try:
        yield
    except kinds as error:
        why = first_line(error)
        raise ValueError(f"{what} ({why}); {mend}." if mend else f"{what}: {why}") from error


def cut(text: str, letters: int = LONGEST) -> str:
    """The text in one line of at most so many letters that can be shown."""
    begun = "".join(letter if letter.isprintable() else " " for letter in text[: letters + 1])
    return begun if len(begun) <= letters else f"{begun[: letters - 4]} ..."


def sentence(error: Exception) -> str:
    """One sentence on an error of ours or of files: what is wrong, and the mend."""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "A file"
        mend = "make room" if error.errno in FULL else "mend it"
        return f"{place} cannot be read or written ({error.strerror}); {mend} or name another."
    if isinstance(error, RecursionError):
        return "A file is nested too deep to be read; give a plainer one."
    if isinstance(error, OF_FILES):
        return f"A file cannot be read or written ({first_line(error)}); make room or name another."
    return " ".join(str(error).split())
