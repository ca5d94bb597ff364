"""Half precision: what is trained has float32 copies, what is computed once is computed wide."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from erase.core.shards import full_tensor
from erase.core.snapshot import in_place_of

FIRST_SCALE = 2.0**16


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in what the model's own would round away."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """The tensor [...] in float32, unless it is of a wider dtype."""
    return tensor.to(at_least_float32(tensor.dtype))


def is_half(tensor: Tensor) -> bool:
    """Whether it holds floating-point numbers [...] of 16 bits or fewer."""
    return tensor.is_floating_point() and tensor.dtype != at_least_float32(tensor.dtype)


class LossScale:
    """Keeps gradients in float16 within its range: losses are multiplied by a power of two.

    `factor` [] is halved for good as long as gradients overflow; at 1 they are taken as they are.
    Other dtypes need none, and have 1. Source: Micikevicius et al., ICLR 2018, section 3.2.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self._parameters = [p for p in parameters if p.dtype == torch.float16]
        self.factor = torch.tensor(FIRST_SCALE if self._parameters else 1.0)

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def backward(self, loss: Tensor, anywhere: Callable[[bool], bool] = bool) -> None:
        """Leave `factor` times the gradients of a scalar loss at the parameters, which had none.

        `anywhere` tells whether a flag is up in any of the processes that share the weights.
        """
        while True:
            (loss * self.factor.item()).backward(retain_graph=bool(self))
            if self.factor <= 1 or not anywhere(self._overflow()):
                return
            self.factor /= 2
            for parameter in self._parameters:
                parameter.grad = None

    def _overflow(self) -> bool:
        gradients = (p.grad for p in self._parameters if p.grad is not None)
        return any(not full_tensor(gradient.isfinite().all()) for gradient in gradients)


def gradients(loss: Tensor, tensors: Sequence[Tensor], through: torch.dtype) -> list[Tensor]:
    """The gradients [...] of a scalar loss in float32 at least, zero where it does not depend.

    through: what the loss was computed in; in float16 they stay within its range as in LossScale.
    """
    factor = FIRST_SCALE if through == torch.float16 else 1.0
    while True:
        scaled = torch.autograd.grad(
            loss * factor, tensors, retain_graph=factor > 1, materialize_grads=True
        )
        found = [widened(slope) / factor for slope in scaled]
        if factor <= 1 or all(slope.isfinite().all() for slope in found):
            return found
        factor /= 2


class MasterWeights:
    """Float32 copies of half-precision parameters, which an optimizer moves in their stead.

    The model goes on computing with roundings of them. Parameters that are wider are their own
    masters. `tensors` are the masters by name. Source: Micikevicius et al., ICLR 2018, section 3.1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.tensors = {
            name: nn.Parameter(widened(own.detach())) if is_half(own) else own
            for name, own in parameters.items()
        }
        pairs = zip(parameters.values(), self.tensors.values(), strict=True)
        self._pairs = [(own, master) for own, master in pairs if own is not master]
        self._scale = LossScale(own for own, _ in self._pairs)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that a training has to keep: the masters, then the loss's factor, if there is one."""
        return self.tensors | ({"factor": self._scale.factor} if self._scale else {})

    def backward(self, loss: Tensor, anywhere: Callable[[bool], bool] = bool) -> None:
        """Add the gradients of a scalar loss to the masters'; `anywhere` as LossScale has it."""
        self._scale.backward(loss, anywhere)
        for own, master in self._pairs:
            if own.grad is not None:
                # As autograd would, so that hooks on the master hear of it.
                master.backward(own.grad.to(master.dtype) / self._scale.factor.item())
                own.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        for own, master in self._pairs:
            own.copy_(master)


@contextmanager
def computed_in_float32(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While in force, modules stored in half precision compute in float32.

    Of their lists of blocks only the block that works is widened, so that memory grows by the
    largest of them. On the way out all tensors are the very same as before.
    """
    with ExitStack() as stack:
        for module in modules:
            blocks = list(_blocks(module))
            within = {id(t) for block in blocks for t in _tensors(block)}
            stack.enter_context(_wide(module, (t for t in _tensors(module) if id(t) not in within)))
            for block in blocks:
                _widen_while_it_works(block, stack)
        yield


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if block is not None)
        else:
            yield from _blocks(child)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _wide(module: nn.Module, tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    wide = {id(tensor): _widened_like(tensor) for tensor in tensors if is_half(tensor)}
    return in_place_of([module], wide)


def _widened_like(tensor: Tensor) -> Tensor:
    wide = widened(tensor.detach())
    return nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide


def _widen_while_it_works(block: nn.Module, stack: ExitStack) -> None:
    if not any(map(is_half, _tensors(block))):
        return
    working: list[ExitStack] = []

    def before(*_: object) -> None:
        working.append(ExitStack())
        working[-1].enter_context(_wide(block, _tensors(block)))

    def after(*_: object) -> None:
        working.pop().close()

    stack.callback(block.register_forward_pre_hook(before).remove)
    stack.callback(block.register_forward_hook(after, always_call=True).remove)
