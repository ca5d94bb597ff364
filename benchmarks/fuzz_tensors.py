"""What the fuzzer does to safetensors files: to their headers, tensors and numbers."""

import json
import math
import struct
from typing import Any

from fuzz_mutations import Rng, mutate_json

NUMBERS = [math.nan, math.inf, -math.inf, 3e38, -1e30, 1e-40, 65504.0, 1e20]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "Q9", ""]
SIZES = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}


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
