"""A second device that computes on the CPU: its tensors refuse to meet the CPU's.

Within `SecondDevice()`, what is made with `device="second"` or moved by `to("second")` or `move` is
there.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
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


def _raw(value):
    return value.raw if isinstance(value, There) else value


def _run(func, args, kwargs):
    flat, spec = tree_flatten((args, kwargs))
    there = any(isinstance(value, There) for value in flat)
    ours = [v for v in flat if isinstance(v, torch.Tensor) and not isinstance(v, There) and v.ndim]
    if there and ours and func not in MAY_MEET:
        raise RuntimeError(f"{func}: a tensor of the CPU {[*ours[0].shape]} meets another device's")
    if func is COPY:
        _raw(args[0]).copy_(_raw(args[1]))
        return args[0]
    raw_args, raw_kwargs = tree_unflatten([_raw(value) for value in flat], spec)
    wanted = kwargs.get("device")
    if wanted is not None:
        raw_kwargs = {key: raw_kwargs[key] for key in raw_kwargs if key != "pin_memory"}
        raw_kwargs["device"] = CPU
    found = func(*raw_args, **raw_kwargs)
    goes = there if wanted is None else torch.device(wanted).type == SECOND.type
    if not goes or func._schema.name == "aten::_local_scalar_dense":
        return found
    # What was changed in place stays the tensor it was.
    known = {id(value.raw): value for value in flat if isinstance(value, There)}
    return tree_map_only(
        torch.Tensor, lambda new: known[id(new)] if id(new) in known else There(new), found
    )


def move(module: torch.nn.Module) -> torch.nn.Module:
    """`module.to("second")`, which would ask a runtime."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(There(weight.data), weight.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = There(buffer)
    return module
