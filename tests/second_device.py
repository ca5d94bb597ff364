"""A second device that computes on the CPU: its tensors refuse to meet the CPU's.

Within `SecondDevice()`, what is made with `device="second"` or moved by `to("second")` is there.
"""

from collections.abc import Callable

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Backend:
    """What torch asks of a backend."""

    in_force = 0

    def is_available(self) -> bool:
        # Else all that looks for some accelerator, as DataParallel does, would find this one.
        return bool(_Backend.in_force)

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_rng_state(self, device: int = 0) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: int = 0) -> None: ...

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("second", _Backend())
CPU, SECOND = torch.device("cpu"), torch.device("second", 0)
COPY = torch.ops.aten.copy_.default
ITEM = torch.ops.aten._local_scalar_dense.default
# An index may lie on the CPU, as on a GPU.
MAY_MEET = {
    COPY,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class There(torch.Tensor):
    """A tensor that says it is on the second device; `raw` is on the CPU."""

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "There":
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, layout=raw.layout, device=SECOND,
        )  # fmt: skip

    def __init__(self, raw: torch.Tensor):
        self.raw = raw

    def __repr__(self) -> str:
        return f"There({self.raw!r})"

    def tolist(self) -> list:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


MADE_OF_NUMBERS = torch.tensor
_device_constructors()  # which torch looks up once, so before that is another


def _of_numbers(numbers, *args, device=None, **options) -> torch.Tensor:
    # What is made of a list never comes to a dispatch mode.
    made = MADE_OF_NUMBERS(numbers, *args, **options)
    return made if device is None else made.to(device)


class SecondDevice(TorchDispatchMode):
    """While in force, the second device is there."""

    def __enter__(self):
        torch.tensor = _of_numbers
        _Backend.in_force += 1
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = MADE_OF_NUMBERS
        _Backend.in_force -= 1
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _mapped(change: Callable[[torch.Tensor], object], value: object) -> object:
    """The value with every tensor in it changed; torch's own way takes several times as long."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(change, one) for one in value])
    return value


def _run(func, args, kwargs):
    met: list[torch.Tensor] = []

    def raw(tensor: torch.Tensor) -> torch.Tensor:
        met.append(tensor)
        return tensor.raw if isinstance(tensor, There) else tensor

    raw_args = [_mapped(raw, value) for value in args]
    raw_kwargs = {key: _mapped(raw, value) for key, value in kwargs.items()}
    known = {id(tensor.raw): tensor for tensor in met if isinstance(tensor, There)}
    ours = [tensor for tensor in met if not isinstance(tensor, There) and tensor.ndim]
    if known and ours and func not in MAY_MEET:
        raise RuntimeError(f"{func}: a tensor of the CPU {[*ours[0].shape]} meets another device's")
    if func is COPY:
        raw_args[0].copy_(raw_args[1])
        return args[0]
    wanted = kwargs.get("device")
    goes = known if wanted is None else torch.device(wanted).type == SECOND.type
    if wanted is not None:
        raw_kwargs.pop("pin_memory", None)
        raw_kwargs["device"] = CPU if goes else wanted
    found = func(*raw_args, **raw_kwargs)
    if not goes or func is ITEM:
        return found
    # What was changed in place stays the tensor it was.
    return _mapped(lambda new: known[id(new)] if id(new) in known else There(new), found)
