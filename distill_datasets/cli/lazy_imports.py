"""Libraries that take seconds to import: put off until something of them is asked for.

The classes of a recipe stand beside the code that computes with torch, and a recipe is checked
without computing. importlib's LazyLoader would not help: the second `import` statement that names a
module asks for its `__spec__`, at which that one loads it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class Later(ModuleType):
    """Stands for a module; what is asked of it is looked up in the real one, imported for that."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._real(), name, value)

    def _real(self) -> ModuleType:
        _give_way()
        return importlib.import_module(self.__name__)


class _Submodules(MetaPathFinder):
    """Imports the modules of a library that nothing stands for, which imports the library."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not isinstance(sys.modules.get(name.partition(".")[0]), Later):
            return None
        _give_way()
        found = _Found(importlib.import_module(name))
        # the import that asks would otherwise take the module's own spec and run its code again
        found.module.__spec__ = ModuleSpec(name, found)
        return found.module.__spec__


class _Found(Loader):
    """Gives a module that was imported a moment ago, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _give_way() -> None:
    """Let imports find the real modules from here on."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, Later):
            del sys.modules[name]


@contextlib.contextmanager
def put_off(*names: str) -> Iterator[None]:
    """Inside, `import` of these modules waits until an attribute of one of them is asked for.

    Then all of them are imported as ever, and code that asks for everything at once is merely
    slower. For one thread; libraries that are imported already or not installed stay as they are.

    Args:
        names: modules in full, each after the package that holds it.
    """
    for name in names:
        package, _, last = name.rpartition(".")
        holder = sys.modules.get(package)
        if name in sys.modules or (package and not isinstance(holder, Later)):
            continue
        spec = PathFinder.find_spec(name, holder.__path__ if holder else None)
        if spec is None:
            continue
        module = sys.modules[name] = Later(name)
        vars(module).update(__spec__=spec, __path__=spec.submodule_search_locations or [])
        if holder is not None:
            vars(holder)[last] = module
    finder = _Submodules()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _give_way()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, nobody looks for garbage; around imports that was a fifth of a run's start.

    What is there at the end is never looked at again: modules live as long as the program.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
