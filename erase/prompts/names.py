"""Names as people spell them; from files: one a line, or in a row of a CSV file with its anchor."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

SIGN = "@"  # begins a word that names such a file
LARGEST = 1 << 22  # bytes of a file
HEADS = [["concept"], ["concept", "anchor"]]
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


def listed(words: Sequence[str]) -> list[str]:
    """The words, and for each `@FILE` among them the names of the file, one a line.

    Raises ValueError, as `listed_pairs` does, and for a row of several columns.
    """
    pairs = [pair for word in words for pair in _pairs(word, 1)]
    return [name for name, _ in pairs]


def listed_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The same, and the anchors that CSV files name beside the concepts; none, or one for each.

    Raises ValueError for a file that is missing, no UTF-8 text, too large or empty, names anything
    twice, or has rows of more than two columns, and where some concepts have anchors, some none.
    """
    pairs = [pair for word in words for pair in _pairs(word, 2)]
    anchors = [anchor for _, anchor in pairs if anchor]
    if anchors and len(anchors) < len(pairs):
        lone = next(name for name, anchor in pairs if not anchor)
        raise ValueError(
            f"{len(anchors)} of {len(pairs)} concepts have an anchor, and {lone} has none; give "
            "each one, or leave all out."
        )
    return [name for name, _ in pairs], anchors


def _pairs(word: str, columns: int) -> Iterator[tuple[str, str]]:
    """A name and its anchor, empty where there is none; of a file, all that it holds."""
    if not word.startswith(SIGN):
        yield word, ""
        return
    path, seen = Path(os.path.expanduser(word[1:])), dict[str, int]()
    for number, cells in _rows(path):
        name, *others = map(spelt, cells)
        if len(cells) > columns or not name:
            wanted = "a concept and its anchor" if columns == 2 else "one name"
            wrong = f"{len(cells)} columns" if name else "no name"
            raise ValueError(f"Row {number} of {path} has {wrong}; give {wanted} in each row.")
        if alike(name) in seen:
            raise ValueError(f"{path} names {name} twice, in rows {seen[alike(name)]} and {number};"
                             " name it once.")  # fmt: skip
        seen[alike(name)] = number
        yield name, "".join(others)
    if not seen:
        raise ValueError(f"{path} holds no names; give one a line.")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of every row that holds any, and its number; a head of `concept` is left out.

    Of a file that is no .csv every line is one cell, and those that begin with # are left out.
    """
    text, first = _text(path), True
    if path.suffix.lower() == ".csv":
        lines, delimiter = io.StringIO(text, newline=""), _delimiter(path, text)
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV file ({error}); mend its quotes.") from error
    else:
        rows = [[line] for line in text.splitlines() if not line.lstrip().startswith("#")]
    for number, cells in enumerate(rows, 1):
        if not any(cell.strip() for cell in cells):
            continue
        if not (first and [cell.strip().lower() for cell in cells] in HEADS):
            yield number, cells
        first = False


def _delimiter(path: Path, text: str) -> str:
    """What parts the cells; of two that may, the one in the head."""
    bare = re.sub('"[^"]*"', "", text)
    marks = [mark for mark in (",", ";") if mark in bare]
    if len(marks) == 2:
        head = bare.strip().lower().partition("\n")[0]
        marks = [mark for mark in marks if list(map(str.strip, head.split(mark))) in HEADS]
        if not marks:
            raise ValueError(f"{path} has commas and semicolons; put names that hold either in "
                             "quotes, or begin with a row of concept and anchor.")  # fmt: skip
    return marks[0] if marks else ","


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no plain file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MB")
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it is no text")
        return text
    except (OSError, ValueError) as error:
        why = "it is no UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        why = error.strerror or why if isinstance(error, OSError) else why
        raise ValueError(f"The list {path} cannot be read ({why}); give a text file with a name a "
                         "line, or a CSV file.") from error  # fmt: skip
