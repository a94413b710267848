"""Importing a model's own code so that nothing of it meets another model's.

Triton gives every instance of a model a process, and puts the model's folders on ``sys.path``: ``import helper`` finds
the ``helper.py`` beside ``model.py``. In one process that path would be everybody's, and so would ``sys.modules``,
where two models' helpers of one name are one entry. So here each instance has a package of its own, under a name that
nothing else has, and the files in its folders are that package's modules. What makes ``import helper`` find
``<package>.helper`` is the ``__import__`` in their builtins. It is called for these modules' code alone, whenever and
on whatever thread that code imports; the rest of the process never sees it.
"""

import builtins
import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_NUMBERS = itertools.count()


class ModelModules:
    """The modules in ``folders``, for one session. Its thread imports the first; any thread may import more.

    A name is looked for in ``provided``, in the standard library, in ``folders``, and among what is installed, in this
    order. A folder without ``__init__.py`` comes last: it may as well hold data.
    """

    def __init__(self, folders: Sequence[Path], *, provided: Mapping[str, ModuleType]) -> None:
        self._folders = [str(folder) for folder in folders]
        self._provided = provided
        self.builtins = {**vars(builtins), "__import__": self._import}
        self._own: dict[str, bool] = {}
        self._package = f"preheat_python_{next(_NUMBERS)}"
        package = ModuleType(self._package)
        package.__path__ = self._folders
        sys.modules[self._package] = package
        _FINDER.owners[self._package] = self

    def import_file(self, path: Path) -> ModuleType:
        """Import ``path`` whatever it is called. Raises what its code raises."""
        name = f"{self._package}.{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
        loader = _SourceLoader(name, str(path))
        spec = ModuleSpec(name, loader, origin=str(path))
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        # It stays there for as long as the model is loaded: dataclasses and pickle look their classes up there.
        sys.modules[name] = module
        loader.exec_module(module)
        return module

    def find_spec(self, fullname: str, folders: Sequence[str]) -> ModuleSpec | None:
        """Where in ``folders`` the module ``fullname`` is, whose last part is its file's name."""
        portions: list[str] = []
        for folder in folders:
            loaders = (ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceLoader, SOURCE_SUFFIXES)
            spec = FileFinder(folder, *loaders).find_spec(fullname)
            if spec is not None and spec.loader is not None:
                return spec
            portions += (spec and spec.submodule_search_locations) or []
        if not portions:
            return None
        namespace = ModuleSpec(fullname, None, is_package=True)
        namespace.submodule_search_locations = portions
        return namespace

    def close(self) -> None:
        """Forget the modules. Who still holds one may go on using it, but not import more."""
        _FINDER.owners.pop(self._package, None)
        for name in list(sys.modules):
            if _package_of(name) == self._package:
                sys.modules.pop(name, None)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names are those of the builtin
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What ``import`` calls, in these modules, in place of the builtin."""
        if level == 0 and name in self._provided:
            return self._provided[name]
        first = _package_of(name)
        if level > 0 or not self._is_own(first):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{self._package}.{name}", globals, locals, fromlist, 0)
        # `import a.b` binds a; with names to import from it, what came back is a.b already.
        return module if fromlist else sys.modules[f"{self._package}.{first}"]

    def _is_own(self, name: str) -> bool:
        if name not in self._own:
            self._own[name] = name not in sys.stdlib_module_names and self._finds(name)
        return self._own[name]

    def _finds(self, name: str) -> bool:
        spec = self.find_spec(f"{self._package}.{name}", self._folders)
        return spec is not None and (spec.loader is not None or not _is_installed(name))


class _SourceLoader(SourceFileLoader):
    """Compiles at every load, and runs the code with its model's builtins.

    A ``__pycache__`` would be written into the model repository, and one left there of an edit within the same second
    would be taken for the new source.
    """

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - importlib's signature
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = _FINDER.owners[_package_of(module.__name__)].builtins
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds every model's modules, by the package in their names, and nothing else."""

    def __init__(self) -> None:
        self.owners: dict[str, ModelModules] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        owner = self.owners.get(_package_of(fullname))
        return None if owner is None else owner.find_spec(fullname, path or ())


def _package_of(name: str) -> str:
    """The outermost package of a module."""
    return name.partition(".")[0]


def _is_installed(name: str) -> bool:
    """Whether ``import name`` finds more than a folder without ``__init__.py``."""
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


_FINDER = _Finder()
# First, or Python's own would find these files by their package's path, and load them in its own way.
sys.meta_path.insert(0, _FINDER)
