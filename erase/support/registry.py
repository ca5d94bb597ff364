"""Names for what one can choose: the library's own, and what other packages bring along."""

import pkgutil
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from erase.support.errors import first_line

Entry = TypeVar("Entry")
Function = TypeVar("Function", bound=Callable)


class Registry(Generic[Entry]):
    """The entries of one kind, by name.

    kind: what a sentence calls an entry, as in "method". group: the entry points under which other
    packages name modules that add entries when they are imported, as in "erase.methods"; that
    happens when the registry is first read. One that cannot be imported is warned of and left out.
    own: the package whose modules add the library's own entries, if they wait for that too.
    """

    def __init__(self, kind: str, group: str, own: str = ""):
        self._kind, self._group, self._own = kind, group, own
        self._entries: dict[str, Entry] = {}
        self._plugins_asked = False

    def add(self, name: str, entry: Entry) -> None:
        """Let the entry go by this name; ValueError if another one does.

        An entry with a config has options that begin with the name: ValueError if it is no word.
        """
        if hasattr(entry, "config") and not name.isidentifier():
            raise ValueError(
                f"The {self._kind} {name!r} cannot go by that name, with which its options begin; "
                "name it by letters, digits and _."
            )
        if name in self._entries:
            raise ValueError(f"The {self._kind} {name!r} is there already; give another name.")
        self._entries[name] = entry

    def adding(
        self, *names: str, made: Callable[[Any], Entry] = lambda function: function
    ) -> Callable[[Function], Function]:
        """Decorate a function: what is `made` of it goes by these names, as `add` has it."""

        def decorated(function: Function) -> Function:
            for name in names:
                self.add(name, made(function))
            return function

        return decorated

    def all(self) -> dict[str, Entry]:
        """Every entry, in the order of their names."""
        if not self._plugins_asked:
            self._plugins_asked = True
            folders = import_module(self._own).__path__ if self._own else ()
            for module in pkgutil.iter_modules(folders, f"{self._own}."):
                import_module(module.name)
            self._import_plugins()
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> Entry:
        """The entry of this name; ValueError, listing all, if there is none."""
        entries = self.all()
        if name not in entries:
            known = ", ".join(entries)
            raise ValueError(f"There is no {self._kind} {name!r}; choose one of {known}.")
        return entries[name]

    def _import_plugins(self) -> None:
        for plugin in entry_points(group=self._group):
            try:
                plugin.load()
            except Exception as error:  # whatever a stranger's module may raise
                warnings.warn(
                    f"The plugin {plugin.name} ({plugin.value}) of {self._group} is left out, for "
                    f"it cannot be imported ({first_line(error)}); mend or remove it.",
                    stacklevel=2,
                )
