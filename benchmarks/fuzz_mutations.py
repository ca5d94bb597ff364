"""What the fuzzer does to files: bytes, JSON, safetensors headers and numbers, and the file itself.

Every mutation takes a random generator and what to change; the same generator changes the same.
"""

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

Rng = Random
HUGE_FILE = 1 << 33  # bytes, of which the disk holds none
LARGE = 1 << 18  # bytes, which are not changed once more
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
    "evaluation:\n  threshold: .inf\n", "---\nmodel: two\n", "- a\n", "model: 2020-01-01\n",
]  # fmt: skip
NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -1e30, 1e-40, 65504.0, 1e20]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "Q9", ""]
SIZES = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}


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


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: Any, numbers: bytes) -> bytes:
    """A file of them."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def change_length(rng: Rng, data: bytes) -> bytes:
    """Another length of the header."""
    length = struct.unpack("<Q", data[:8])[0]
    other = rng.choice([0, 1, length - 1, length + 8, 2**31, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", other) + data[8:]


def change_header(rng: Rng, data: bytes) -> bytes:
    """Other names, dtypes, shapes or offsets, with or without numbers that fit them."""
    header, numbers = split_safetensors(data)
    names = [name for name in header if name != "__metadata__"]
    if not names or rng.random() < 0.3:
        return join_safetensors(json.loads(mutate_json(rng, json.dumps(header).encode())), numbers)
    name = rng.choice(names)
    entry = header[name]
    change = rng.choice(["dtype", "shape", "huge", "empty", "swap", "rename", "offsets", "more"])
    if change == "dtype":
        entry["dtype"] = rng.choice(DTYPES)
    elif change == "shape":
        entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [1], [], [0]])
    elif change == "huge":
        entry["shape"] = rng.choice([[2**20, 2**20], [2**62], [2**63, 2], [-1], [1.5], [2**40, 0]])
    elif change == "empty":
        entry |= {"shape": rng.choice([[0], [2**40, 0], [0, 2**62]]), "data_offsets": [0, 0]}
    elif change == "swap":
        other = rng.choice(names)
        header[name], header[other] = header[other], entry
    elif change == "rename":
        header[_other_name(rng, name)] = header.pop(name)
    elif change == "offsets":
        entry["data_offsets"] = rng.choice([[0, 2**40], [2**63, 2**63], [8, 0], [-8, 0], [0, 1]])
    else:
        return _with_another(rng, header, numbers)
    return join_safetensors(header, numbers)


def _other_name(rng: Rng, name: str) -> str:
    return rng.choice(
        ["", ":", "x", name + "x", name.upper(), name[::-1], name * 40, f"../{name}", "a.b.c.d",
         name.replace(".weight", ".bias"), name.replace("lora_A", "lora_B"), f"\ud800{name}",
         name.replace(":values", ":up"), name.replace(".shape", "")]
    )  # fmt: skip


def _with_another(rng: Rng, header: dict[str, Any], numbers: bytes) -> bytes:
    name, dtype = rng.choice(list(header)), rng.choice(list(SIZES))
    shape = rng.choice([[1], [2, 2], [64, 4], [1, 4096], [30000, 1]])
    more = bytes(math.prod(shape) * SIZES[dtype])
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(numbers), len(numbers + more)]}
    header[rng.choice([name, "other", f"{name}:up", "unet.x.lora_A.weight"])] = entry
    return join_safetensors(header, numbers + more)


def change_tensor(rng: Rng, data: bytes) -> bytes:
    """A tensor of another dtype or shape whose file is whole, or without it."""
    header, numbers = split_safetensors(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensors = {
        k: (v, numbers[slice(*v["data_offsets"])]) for k, v in header.items() if "dtype" in v
    }
    entry, held = tensors.pop(name)
    if rng.random() < 0.8:
        dtype = rng.choice(list(SIZES))
        shape = rng.choice(
            [entry["shape"], entry["shape"][::-1], [1], [3, 5], [*entry["shape"], 1]]
        )
        shape = [size * rng.choice([1, 1, 1, 2]) for size in shape]
        count = math.prod(shape) * SIZES[dtype]
        tensors[name] = {"dtype": dtype, "shape": shape}, (held * (count // len(held) + 1))[:count]
    written, at = b"", 0
    known = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    for name, (entry, held) in tensors.items():
        known[name] = entry | {"data_offsets": [at, at := at + len(held)]}
        written += held
    return join_safetensors(known, written)


def change_numbers(rng: Rng, data: bytes) -> bytes:
    """Some numbers of a tensor that are none, huge, tiny or others."""
    header, numbers = split_safetensors(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    (start, end), dtype = header[name]["data_offsets"], header[name]["dtype"]
    changed, size = bytearray(numbers), SIZES.get(dtype, 1)
    number = rng.choice(NUMBERS)
    for _ in range(rng.choice([1, 1, 3, 1000])):
        place = start + size * rng.randrange(max(1, (end - start) // size))
        changed[place : place + size] = _bytes_of(rng, number, dtype)
    return join_safetensors(header, bytes(changed[: len(numbers)]))


def _bytes_of(rng: Rng, number: float, dtype: str) -> bytes:
    if dtype in ("F32", "F64"):
        return struct.pack("<f" if dtype == "F32" else "<d", number)
    if dtype == "BF16":
        return struct.pack("<f", number)[2:]
    if dtype == "F16":
        return struct.pack(
            "<e", number if abs(number) <= 65504 else math.copysign(math.inf, number)
        )
    return rng.randbytes(SIZES.get(dtype, 1))


SAFETENSORS = [change_length, change_header, change_header, change_tensor, change_numbers]


def change_png(rng: Rng, data: bytes) -> bytes:
    """A PNG that says it is of another size or kind, with the check sum that fits."""
    if not data.startswith(b"\x89PNG"):
        return flip_bits(rng, data)
    sides = [rng.choice([0, 1, 7, 5000, 20000, 2**31 - 1]) for _ in range(2)]
    depth, colours = rng.choice([1, 2, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 9])
    head = b"IHDR" + struct.pack(">IIBB", *sides, depth, colours) + data[26:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def to_missing(rng: Rng, path: Path) -> None:
    """No file at all."""
    path.unlink()


def to_folder(rng: Rng, path: Path) -> None:
    """A folder of its name."""
    path.unlink()
    path.mkdir()


def to_pipe(rng: Rng, path: Path) -> None:
    """A pipe that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def to_link(rng: Rng, path: Path) -> None:
    """A link to what is elsewhere, is not there, never ends, or is itself."""
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "../../outside", "nowhere", path.name]))


def to_huge(rng: Rng, path: Path) -> None:
    """Itself with nothing after it, for many gigabytes."""
    os.truncate(path, HUGE_FILE)


def to_another(rng: Rng, path: Path) -> None:
    """What another file beside it holds."""
    others = sorted(other for other in path.parent.iterdir() if other != path and other.is_file())
    if others:
        shutil.copyfile(rng.choice(others), path)


FILES: list[Callable[[Rng, Path], None]] = [
    to_missing, to_folder, to_pipe, to_link, to_huge, to_another,
]  # fmt: skip


def mutate_file(rng: Rng, path: Path) -> None:
    """Change a file in one to three ways of those that its name allows."""
    data, kinds = path.read_bytes(), list(BYTES)
    path.unlink()  # it may be one file with the good one
    if rng.random() < 0.08:
        path.write_bytes(data)
        rng.choice(FILES)(rng, path)
        return
    if path.suffix == ".json":
        kinds += [mutate_json] * 16
    if path.suffix == ".safetensors":
        kinds += SAFETENSORS * 5
    if path.suffix == ".yaml":
        kinds += [mutate_yaml] * 24
    if path.suffix == ".csv":
        kinds += [mutate_csv] * 16
    if path.suffix == ".png":
        kinds += [change_png] * 4
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if len(data) > LARGE:
            break
        try:
            data = rng.choice(kinds)(rng, data)
        except Exception:  # what was changed before is no such file any more
            data = flip_bits(rng, data)
    path.write_bytes(data)
