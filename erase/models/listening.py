"""Hearing a pipeline's own call: what its modules are given and answer, what its scheduler does."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.guiders import BaseGuidance
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from erase.core.activations import hooks_are_heard
from erase.core.seeds import seeded

Leaves = dict[str, Any]
# Of a call, and what was said in the first one; None where the module is to say what it does.
Answer = Callable[["Call", Tensor], Tensor | None]


def leaves(value: Any) -> Leaves:
    """All that nested arguments hold, by paths such as `text[0].mask`."""
    found: Leaves = {}
    replaced(value, found.setdefault)
    return found


def replaced(value: Any, new: Callable[[str, Any], Any], path: str = "") -> Any:
    """The same nest with `new(path, leaf)` in every leaf's place."""
    if isinstance(value, Mapping):
        return {
            k: replaced(one, new, f"{path}.{k}" if path else str(k)) for k, one in value.items()
        }
    if isinstance(value, list | tuple):
        parts = [replaced(one, new, f"{path}[{i}]") for i, one in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return new(path, value)


def cloned(value: Any) -> Any:
    """The same nest with copies of its tensors: some pipelines write into what they handed over."""
    return replaced(value, lambda _, v: v.detach().clone() if isinstance(v, Tensor) else v)


def same(one: Any, other: Any) -> bool:
    """Whether two leaves, or nests of them, are equal bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(one, other)
    if isinstance(one, Mapping | list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            return False
        ours, theirs = leaves(one), leaves(other)
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    return type(one) is type(other) and bool(one is other or one == other)


def digest(value: Any) -> str:
    """What tells the tensors of a nest from others, bit for bit."""
    found = hashlib.sha256()
    for leaf in leaves(value).values():
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            plain = leaf.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def raw_of(said: Any) -> Tensor:
    """The prediction in what a denoiser answers, a list of several stacked."""
    found = said if isinstance(said, Tensor) else said[0]
    return torch.stack(list(found)) if isinstance(found, list | tuple) else found


def with_raw(said: Any, raw: Tensor) -> Any:
    """The same answer with another prediction."""
    if isinstance(said, Tensor):
        return raw
    found = type(said[0])(raw.unbind()) if isinstance(said[0], list | tuple) else raw
    if isinstance(said, tuple):
        return (found, *said[1:])
    return type(said)(found, *said.to_tuple()[1:])


@dataclass
class Call:
    """One call of a module after `step` steps of the scheduler, and what it said."""

    who: str
    step: int
    arguments: dict[str, Any]
    raw: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass
class Draw:
    """What was heard of one call of a pipeline.

    samples, times: what the scheduler was given at each step. result: what its last step gave, if
    there was one. output: what the pipeline gave.
    read, said: by layer, digests of what it read and what it said, one list a call of its module.
    """

    calls: list[Call] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)
    result: Tensor = field(default_factory=lambda: torch.zeros(0))
    output: Any = None
    read: dict[str, list[list[str]]] = field(default_factory=dict)
    said: dict[str, list[Any]] = field(default_factory=dict)

    def of(self, who: str) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.who == who]


class HeardEnoughError(Exception):
    """Breaks a pipeline's call off."""


@dataclass
class Listener:
    """Listens to calls of a pipeline with the same options.

    guided: guiders are at work. grads: what is heard keeps its gradients, where they are enabled.
    """

    pipeline: DiffusionPipeline
    options: Mapping[str, Any]
    modules: Collection[str]
    guided: bool = False
    grads: bool = False

    def draw(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        layers: Mapping[str, nn.Module] | None = None,
        keep: Mapping[str, nn.Module] | None = None,
        put: Mapping[str, list[Any]] | None = None,
        answer: Answer | None = None,
        forms: dict[str, Any] | None = None,
        until: Collection[str] = (),
        ending: Tensor | None = None,
        **options: Any,
    ) -> Draw:
        """Have the pipeline draw, and hear it.

        layers: tell what they read. keep: what they say is kept. put: what layers say instead.
        answer: what is said instead of the modules' own prediction; they are then called but once,
        for the form of what they say, and never if `forms` has it. until: break off when all of
        these have been called. ending: what the scheduler gives at every step, the last too.
        """
        heard, forms = Draw(), {} if forms is None else forms
        alone = isinstance(prompt, str)
        generator = seeded(seed) if alone else [seeded(seed + i) for i in range(len(prompt))]
        given = {**self.options, **options}
        call = type(self.pipeline).__call__
        call = inspect.unwrap(call) if self.grads else call  # past what computes no gradients
        with ExitStack() as hooks:
            hooks.enter_context(silent(self.pipeline, self.guided))
            hooks.enter_context(hooks_are_heard())
            hooks.enter_context(_steps_heard(self.pipeline.scheduler, heard, ending))
            for who in self.modules:
                hooks.enter_context(self._calls_heard(who, heard, answer, forms, set(until)))
            for name, layer in (layers or {}).items():
                hooks.enter_context(_reading(name, layer, heard))
            for name, layer in (keep or {}).items():
                hooks.enter_context(_saying(name, layer, heard, (put or {}).get(name, [])))
            with suppress(HeardEnoughError):
                heard.output = call(self.pipeline, prompt=prompt, generator=generator, **given)
        return heard

    def _calls_heard(
        self, who: str, heard: Draw, answer: Answer | None, forms: dict[str, Any], until: set[str]
    ) -> AbstractContextManager[None]:
        module: nn.Module = getattr(self.pipeline, who)
        forward = module.forward
        signature = inspect.signature(forward)

        @functools.wraps(forward)
        def listening(*args: Any, **given: Any) -> Any:
            bound = _bound(signature, args, given)
            call = Call(who, len(heard.samples), bound if self.grads else cloned(bound))
            heard.calls.append(call)
            if until and until <= {one.who for one in heard.calls}:
                raise HeardEnoughError
            if answer and who not in forms:
                forms[who] = forward(*args, **given)
            made_up = answer(call, raw_of(forms[who])) if answer else None
            said = with_raw(forms[who], made_up) if made_up is not None else forward(*args, **given)
            call.raw = raw_of(said).detach().clone()
            return said

        return overridden(module, "forward", listening)


@contextmanager
def overridden(holder: object, name: str, other: Any) -> Iterator[None]:
    """While in force, an object has another attribute of that name.

    It is put past what else setting it does, such as to note a component's class in a pipeline's
    config.
    """
    own = vars(holder)
    before, had = own.get(name), name in own
    own[name] = other
    try:
        yield
    finally:
        own[name] = before
        if not had:
            del own[name]


def _bound(signature: inspect.Signature, args: Any, given: Any) -> dict[str, Any]:
    """The arguments by name, so that `module(**arguments)` is the same call."""
    found = dict(signature.bind(*args, **given).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


@contextmanager
def silent(pipeline: DiffusionPipeline, guided: bool = False) -> Iterator[None]:
    """While in force it shows no bar, and guiders, which run a second, unprompted call, are off."""
    shown = dict(getattr(pipeline, "_progress_bar_config", {}))
    guiders = [
        one for one in pipeline.components.values()
        if isinstance(one, BaseGuidance) and one._enabled and not guided
    ]  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for guider in guiders:
        guider.disable()
    try:
        yield
    finally:
        pipeline._progress_bar_config = shown
        for guider in guiders:
            guider.enable()


def _steps_heard(
    scheduler: Any, heard: Draw, ending: Tensor | None
) -> AbstractContextManager[None]:
    step = type(scheduler).step
    signature = inspect.signature(step)

    @functools.wraps(step)  # pipelines read its signature: what it does not name is not handed over
    def listening(own: Any, *args: Any, **given: Any) -> Any:
        if own is not scheduler:  # a copy, which has a copy of this: it steps what is no picture
            return step(own, *args, **given)
        named = signature.bind(own, *args, **given).arguments
        heard.samples.append(cloned(named["sample"]))
        heard.times.append(cloned(named.get("timestep")))
        found = step(own, *args, **given)
        after = found[0]  # of a tuple, and of what has names for its parts
        heard.result = cloned(after if ending is None else ending.view(after.shape))
        return found if ending is None else _ended(found, after.shape, heard.result)

    return overridden(scheduler, "step", MethodType(listening, scheduler))


def _ended(found: Any, shape: torch.Size, ending: Tensor) -> Any:
    """What a step gives, with another end in place of all that have its shape.

    Some schedulers give the picture that they expect beside it, which some pipelines decode.
    """
    parts = found.to_tuple() if isinstance(found, BaseOutput) else found
    put = [ending if isinstance(p, Tensor) and p.shape == shape else p for p in parts]
    return type(found)(*put) if isinstance(found, BaseOutput) else tuple(put)


def _reading(name: str, layer: nn.Module, heard: Draw) -> RemovableHandle:
    def hear(_: nn.Module, args: Any, given: Any) -> None:
        lists = heard.read.setdefault(name, [])
        lists += [[] for _ in range(len(heard.of(name.partition(".")[0])) - len(lists))]
        if lists:
            lists[-1].append(digest([args, given]))

    return layer.register_forward_pre_hook(hear, with_kwargs=True)


def _saying(name: str, layer: nn.Module, heard: Draw, instead: list[Any]) -> RemovableHandle:
    def hear(_: nn.Module, args: Any, said: Any) -> Any:
        kept = heard.said.setdefault(name, [])
        kept.append(cloned(said))
        return cloned(instead[len(kept) - 1]) if len(kept) <= len(instead) else None

    return layer.register_forward_hook(hear)
