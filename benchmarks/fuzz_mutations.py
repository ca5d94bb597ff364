"""What the fuzzer does to what files hold: bytes, JSON, YAML, CSV and PNG.

Every mutation takes a random generator and what to change; the same generator changes the same.
"""

import json
import math
import struct
import zlib
from random import Random
from typing import Any

import yaml

Rng = Random
WORDS = [
    "", "nan", "NaN", "-inf", "1e999", "\x00", "\ud800", "é", "../../outside", "/etc/passwd", "~",
    "x" * 5000, "None", "true", "{0.__class__}", "class:1", "-1", "9" * 400, "\r\n", '"', ",", "\t",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 2**70, 1e308, 1e-320, math.nan, math.inf, -math.inf, 0.5,
    [], {}, [[]], {"": {}}, [1, "a"], *WORDS,
]  # fmt: skip
LINES = [
    "x: !!python/object/apply:pathlib.Path.touch [ran]\n",
    "model: !!python/object/apply:os.getcwd []\n",
    "prompts:\n  class_path: pathlib.Path\n  init_args:\n    path: ran\n",
    "class_path: subprocess.Popen\n", "model:\n  class_path: os.system\n", "config: config.yaml\n",
    "a: &a [1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
    ),
    "model: emoji\nmodel: other\n", "quirks: &q [*q]\n", "seeds: 0x1F\n", "? [a, b]\n: c\n",
    "drawing: 1\n", "drawing:\n  steps: 1e400\n", "drawing:\n  guidance_scale: .nan\n",
    "evaluation:\n  threshold: .inf\n", "---\nmodel: two\n", "- a\n", "1: 2\n",
    "model: 2020-01-01\n",
]  # fmt: skip


def _position(rng: Rng, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def flip_bits(rng: Rng, data: bytes) -> bytes:
    """One to eight bits, in the first kilobyte or anywhere."""
    changed, within = bytearray(data), len(data) if rng.random() < 0.5 else min(len(data), 1024)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: Rng, data: bytes) -> bytes:
    """The first bytes, or none."""
    return data[: _position(rng, data)] if rng.random() < 0.8 else b""


def insert_bytes(rng: Rng, data: bytes) -> bytes:
    """Random bytes in between, up to 64."""
    place = _position(rng, data)
    return data[:place] + rng.randbytes(rng.randint(1, 64)) + data[place:]


def drop_bytes(rng: Rng, data: bytes) -> bytes:
    """Without some bytes in between."""
    place = _position(rng, data)
    return data[:place] + data[place + rng.randint(1, 64) :]


def repeat_bytes(rng: Rng, data: bytes) -> bytes:
    """Some bytes twice or many times."""
    place = _position(rng, data)
    return data[:place] + data[place : place + 64] * rng.choice([2, 3, 50]) + data[place:]


def insert_word(rng: Rng, data: bytes) -> bytes:
    """A word that means something to one reader or another."""
    place, word = _position(rng, data), rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return data[:place] + word + data[place:]


def recode(rng: Rng, data: bytes) -> bytes:
    """The same text in another encoding, with a byte order mark or with letters beyond it."""
    text = data.decode("latin-1")
    kind = rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252-letters"])
    return data + "äö€".encode("cp1252") if kind == "cp1252-letters" else text.encode(kind)


def garbage(rng: Rng, data: bytes) -> bytes:
    """Other bytes altogether."""
    return rng.randbytes(rng.randint(1, 400))


BYTES = [flip_bits, truncate, insert_bytes, drop_bytes, repeat_bytes, insert_word, recode, garbage]


def mutate_json(rng: Rng, data: bytes) -> bytes:
    """A value of another type, a key gone, twice or renamed, or nesting without end."""
    record = json.loads(data)
    holder, key = _place(rng, record)
    if holder is None or rng.random() < 0.05:
        return json.dumps(rng.choice(VALUES)).encode()
    if rng.random() < 0.1:
        holder[key] = "@"
        opened = rng.choice(["[", '{"a":'])
        depth = rng.choice([50, 900, 100_000])
        inner = opened * depth + "1" + ("]" if opened == "[" else "}") * depth
        return json.dumps(record).replace('"@"', inner, 1).encode()
    change = rng.choice(["value", "value", "value", "drop", "rename", "twice", "long"])
    if change == "value":
        holder[key] = rng.choice(VALUES)
    elif change == "drop":
        del holder[key]
    elif change == "long":
        holder[key] = [holder[key]] * 3000
    elif isinstance(holder, dict):
        _rename(rng, holder, key, change)
    return json.dumps(record).encode()


def _rename(rng: Rng, holder: dict[str, Any], key: str, change: str) -> None:
    name = rng.choice(WORDS)
    holder[name] = holder[key] if change == "twice" else holder.pop(key)


def _place(rng: Rng, record: Any) -> tuple[Any, Any]:
    """A list or mapping within and one of its keys, at any depth."""
    found = []
    waiting = [record]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else list(range(len(one)))
            found += [(one, key) for key in keys]
            waiting += [one[key] for key in keys]
    return rng.choice(found) if found else (None, None)


def mutate_yaml(rng: Rng, data: bytes) -> bytes:
    """As `mutate_json`, or a line that would run code or grow without end."""
    if rng.random() < 0.3 or b"&" in data:
        return data + rng.choice(LINES).encode()
    return mutate_json(rng, json.dumps(yaml.safe_load(data)).encode())


def mutate_csv(rng: Rng, data: bytes) -> bytes:
    """A cell of another text, or without it."""
    rows = [line.split(",") for line in data.decode().split("\n")]
    row = rng.choice(rows)
    place = rng.randrange(len(row))
    row[place : place + 1] = rng.choice([[], [rng.choice(WORDS)], [rng.choice(WORDS)]])
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


def change_png(rng: Rng, data: bytes) -> bytes:
    """A PNG that says it is of another size or kind, with the check sum that fits."""
    if not data.startswith(b"\x89PNG"):
        return flip_bits(rng, data)
    if rng.random() < 0.05:
        return zeros_png(
            *rng.choice([(6000, 8000), (9000, 9000), (3, 300_000)]), rng.choice([0, 2, 6])
        )
    sides = [rng.choice([0, 1, 7, 5000, 20000, 2**31 - 1]) for _ in range(2)]
    depth, colours = rng.choice([1, 2, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 9])
    head = b"IHDR" + struct.pack(">IIBB", *sides, depth, colours) + data[26:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def zeros_png(width: int, height: int, colours: int) -> bytes:
    """A whole PNG of these sides in 8 bits, in a few kilobytes."""
    row, packer = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colours]), zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + name + held + struct.pack(">I", zlib.crc32(name + held))
        for name, held in chunks
    )
