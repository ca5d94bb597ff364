"""Half precision: what is trained has float32 copies, what is computed once is computed wide."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from erase.core.shards import full_tensor, in_shards
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
    masters. `tensors` are the masters by name. Where `kept` [...] tells by name which weights may
    change, a copy holds these alone, in a row, so that neither gradients nor the optimizer's state
    are kept of the others, which stay as they are. Source: Micikevicius et al., ICLR 2018, section
    3.1.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor] | None = None
    ):
        self._own = dict(parameters)
        halves = {name: own for name, own in parameters.items() if is_half(own)}
        cut = {name: own for name, own in halves.items() if kept and not in_shards(own)}
        self._kept = {name: (kept or {})[name].to(own.device) for name, own in cut.items()}
        wide = {name: nn.Parameter(widened(one)) for name, one in self.cut(halves).items()}
        self.tensors = {**parameters, **wide}
        self._pairs = [(name, own, wide[name]) for name, own in halves.items()]
        self._scale = LossScale(halves.values())

    def cut(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the parameters' shapes [...], by name, as their masters hold them."""
        return {name: self._cut(name, tensor.detach()) for name, tensor in tensors.items()}

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        return tensor[self._kept[name]] if name in self._kept else tensor

    @property
    def state(self) -> dict[str, Tensor]:
        """All that a training has to keep: the masters, then the loss's factor, if there is one."""
        return self.tensors | ({"factor": self._scale.factor} if self._scale else {})

    @property
    def whole(self) -> dict[str, nn.Parameter]:
        """The parameters whose masters hold all of them; these masters, by name."""
        return {name: one for name, one in self.tensors.items() if name not in self._kept}

    def values(self) -> dict[str, nn.Parameter]:
        """The masters in the parameters' shapes; the weights that may not change as they are."""
        values = dict(self.tensors)
        for name, kept in self._kept.items():
            wide = widened(self._own[name].detach())
            values[name] = nn.Parameter(wide.masked_scatter_(kept, values[name].detach()))
        return values

    def backward(self, loss: Tensor, anywhere: Callable[[bool], bool] = bool) -> None:
        """Add the gradients of a scalar loss to the masters'; `anywhere` as LossScale has it."""
        self._scale.backward(loss, anywhere)
        for name, own, master in self._pairs:
            if own.grad is not None:
                gradient, own.grad = self._cut(name, own.grad), None
                # As autograd would, so that hooks on the master hear of it.
                master.backward(gradient.to(master.dtype) / self._scale.factor.item())

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        for name, own, master in self._pairs:
            if name in self._kept:
                own.masked_scatter_(self._kept[name], master.to(own.dtype))
            else:
                own.copy_(master)


@contextmanager
def computed_in_float32(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While in force, modules stored in half precision compute in float32.

    Of their lists of blocks only the block that works is widened, and of a language model's table
    of words only what is looked up, so that memory grows by the largest block. On the way out all
    tensors are the very same as before.
    """
    with ExitStack() as stack:
        for module in modules:
            if not any(map(is_half, _tensors(module))):
                continue
            blocks, tables = list(_blocks(module)), _tables(module)
            for part, table in tables:
                stack.callback(part.register_forward_hook(partial(_looked_up, table)).remove)
            # Asked for its form it tells the truth, and nothing can be made of its numbers unseen.
            unread = {id(table): _unread(table) for _, table in tables}
            stack.enter_context(in_place_of([module], unread))
            within = {id(t) for block in blocks for t in _tensors(block)} | unread.keys()
            stack.enter_context(_wide(module, (t for t in _tensors(module) if id(t) not in within)))
            for block in blocks:
                _widen_while_it_works(block, stack)
        yield


def _tables(module: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """Who holds the half-precision table of words of a language model, if it is only looked up in.

    Of other embeddings the model may use the numbers themselves.
    """
    words = None
    with suppress(AttributeError, NotImplementedError):
        words = module.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(words, nn.Embedding) or not is_half(words.weight):
        return []
    table = words.weight
    holders = [p for p in module.modules() if any(t is table for t in p._parameters.values())]
    # A kind of its own may compute more; with a largest norm, looking up writes into the table.
    plain = all(type(part) is nn.Embedding and part.max_norm is None for part in holders)
    return [(part, table) for part in holders] if plain else []


def _unread(table: Tensor) -> Tensor:
    nothing = torch.full((), math.nan, dtype=at_least_float32(table.dtype), device=table.device)
    return _like(table, nothing.expand(table.shape))


def _looked_up(table: Tensor, _: nn.Module, given: tuple[Any, ...], __: Tensor) -> Tensor:
    return widened(nn.functional.embedding(given[0], table.detach()))


def _blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The outermost modules in lists that are called themselves, as no list within a list is."""
    for child in module.children():
        holder = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if holder or not listed:
            yield from _blocks(child, listed or isinstance(child, nn.ModuleList))
        else:
            yield child


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _wide(module: nn.Module, tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    wide = {id(one): _like(one, widened(one.detach())) for one in tensors if is_half(one)}
    return in_place_of([module], wide)


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Values [...] as a parameter, if the tensor is one."""
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


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
