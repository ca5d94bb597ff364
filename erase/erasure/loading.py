"""Loading erasures into a pipeline, the way diffusers' own mixins load adapters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, remove_hook_from_module
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from erase.core.names import require_nothing_added, unwrapped
from erase.erasure.algebra import compose, scale
from erase.erasure.erasure import FILES, AppliedErasure, Erasure
from erase.erasure.recipe import for_any_base
from erase.models.stock import plain_pipeline, stock_class, with_components
from erase.support.errors import refused
from erase.support.files import expanded


class ErasureLoaderMixin:
    """Adds erasures, by name, to the weights of the pipeline it is mixed into.

    Several are composed in the order they were loaded, each at its own scale, so that projections
    apply to what those before them left. The base's own values of what they change are kept in
    memory; `unload_erasure` puts them back bit for bit. `save_pretrained` writes the weights as
    they are, as a folder of the stock class.
    """

    components: Mapping[str, nn.Module]  # the pipeline's own
    _loaded: Mapping[str, tuple[Erasure, float]] = {}
    _in_force: AppliedErasure | None = None

    def load_erasure(
        self,
        source: str | Path,
        adapter_name: str = "default",
        scale: float = 1.0,
        allow_other_base: bool = False,
        **hub_options: Any,
    ) -> None:
        """Load an erasure folder or a hub repository, and put it in force at a scale.

        `hub_options` are snapshot_download's, such as `revision` and `token`. Raises ValueError for
        a name that is taken, for what is no erasure, and for one made for other weights, unless
        `allow_other_base`; the pipeline stays as it was then.
        """
        if adapter_name in self._loaded:
            raise ValueError(
                f"An erasure named {adapter_name} is loaded; unload it, or give another name."
            )
        erasure = Erasure.from_pretrained(_folder_of(source, hub_options))
        if allow_other_base:
            erasure.recipe = for_any_base(erasure.recipe)
        with self._at_hand():
            self._restore()
            try:  # alone, on the base's own weights
                erasure.apply(self.components, scale, allow_other_base).revert()
            finally:
                self._put_in_force(self._loaded)
            self._put_in_force({**self._loaded, adapter_name: (erasure, scale)})

    def set_erasure_scale(self, scale: float, adapter_name: str = "default") -> None:
        """Put a loaded erasure in force at another scale: 0 is the base, 1 as it was made."""
        erasure, _ = self._loaded[self._known(adapter_name)]
        with self._at_hand():
            self._put_in_force({**self._loaded, adapter_name: (erasure, scale)})

    def unload_erasure(self, adapter_name: str | None = None) -> None:
        """Take one erasure back, or all: what is left then is the base, bit for bit."""
        gone = list(self._loaded) if adapter_name is None else [self._known(adapter_name)]
        with self._at_hand():
            self._put_in_force({n: one for n, one in self._loaded.items() if n not in gone})

    def fuse_erasure(self) -> None:
        """Make all that is in force permanent and free the base's own values."""
        self._loaded, self._in_force = {}, None

    def list_erasures(self) -> dict[str, float]:
        """Scales by name, in the order the erasures were loaded."""
        return {name: scale for name, (_, scale) in self._loaded.items()}

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Write the weights as they are, as a pipeline of the stock class.

        Raises ValueError where an adapter is loaded, which no stock folder holds.
        """
        stock = with_components(plain_pipeline(self), {}, stock_class(self))
        require_nothing_added(stock.components)
        with self._at_hand():
            stock.save_pretrained(save_directory, *args, **options)

    def _known(self, adapter_name: str) -> str:
        if adapter_name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise ValueError(f"No erasure named {adapter_name} is loaded, of {known}; load it.")
        return adapter_name

    def _put_in_force(self, wanted: Mapping[str, tuple[Erasure, float]]) -> None:
        parts = [scale(erasure, factor) for erasure, factor in wanted.values()]
        joint = compose(parts) if len(parts) > 1 else next(iter(parts), None)
        self._restore()
        before, replaced = self._loaded, self._is_of_others()
        self._loaded, self._in_force = {}, None
        try:
            if joint:
                self._in_force = joint.apply(self.components, allow_other_base=not replaced)
        except BaseException:
            if before is not wanted and not replaced:
                self._put_in_force(before)
            raise
        self._loaded = wanted

    def _restore(self) -> None:
        if not (applied := self._in_force):
            return
        applied.require_revertible()  # else all stays in force
        try:
            applied.revert()
        except ValueError:
            self._loaded, self._in_force = {}, None
            raise

    def _is_of_others(self) -> bool:
        """Whether what was last in force was so in modules that were replaced since."""
        modules = self._in_force.modules if self._in_force else {}
        now = {name: self.components.get(name) for name in modules}
        return any(m is None or unwrapped(m) is not modules[n] for n, m in now.items())

    @contextmanager
    def _at_hand(self) -> Iterator[None]:
        """While in force, sequential offloading, which keeps weights outside modules, is off."""
        modules = [m for m in self.components.values() if isinstance(m, nn.Module)]
        offloaded = {m: device for m in modules if (device := _sequential_device(m)) is not None}
        try:
            for module in offloaded:
                remove_hook_from_module(module, recurse=True)
            yield
        finally:
            for module, device in offloaded.items():
                cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


@cache
def erased(kind: type[DiffusionPipeline]) -> type[Any]:
    """A pipeline class of diffusers with `load_erasure` and so on; the same for every call.

    Open it with its `from_pretrained`, or turn an open pipeline into one with `from_pipe`. Raises
    ValueError for what is no such class.
    """
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise ValueError(f"{kind!r} is no pipeline class of diffusers; give one, as FluxPipeline.")
    return type(f"Erased{kind.__name__}", (ErasureLoaderMixin, kind), {"__doc__": kind.__doc__})


def _sequential_device(module: nn.Module) -> torch.device | None:
    """Where a sequentially offloaded module computes; none for any other."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if isinstance(one, AlignDevicesHook) and one.offload:
                return torch.device(one.execution_device)
    return None


def _folder_of(source: str | Path, hub_options: Mapping[str, Any]) -> Path:
    """The folder itself, or what was downloaded of the hub repository of this name."""
    if strange := sorted(hub_options.keys() - signature(snapshot_download).parameters.keys()):
        raise ValueError(f"load_erasure knows no {', '.join(strange)}; leave it out.")
    if (folder := expanded(source)).is_dir():
        return folder
    mend = "give a folder that save_pretrained wrote, or a hub repository you can reach"
    with refused(f"{source} is no folder and could not be downloaded", mend):
        return Path(snapshot_download(str(source), allow_patterns=list(FILES), **hub_options))
