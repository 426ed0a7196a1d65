"""The one registry: a package's modules, keyed by file name, `crop_flip.py` as "crop-flip"."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import ModuleType


class Registry:
    """The modules of a package that define a given name, each keyed by its file name.

    Nothing is imported until `modules` is first needed. Then all modules of the package are imported, since only that
    shows which of them define the name.

    Args:
        package: its full name.
        defines: the name that makes a module an entry; the other modules are helpers.
    """

    def __init__(self, package: str, defines: str) -> None:
        self.package, self.defines = package, defines

    @property
    def modules(self) -> dict[str, ModuleType]:
        """The modules by key, in alphabetical order."""
        folders = tuple(importlib.import_module(self.package).__path__)
        return _found(self.package, folders, self.defines)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.modules)

    @property
    def listed(self) -> tuple[str, ...]:
        """The same keys without any import, from the modules whose text defines the name at the left margin."""
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations if spec is not None else None) or ()
        paths = sorted(path for folder in folders for path in Path(folder).glob("*.py"))
        defined = re.compile(rf"^(class {self.defines}\b|{self.defines}\b.*=)", re.M)
        found = {path.stem.replace("_", "-") for path in paths if defined.search(path.read_text(encoding="utf-8"))}
        return tuple(sorted(found - {"--init--"}))

    def __contains__(self, key: object) -> bool:
        return key in self.modules

    def __getitem__(self, key: str) -> ModuleType:
        """The module with this key; raises KeyError if there is none."""
        return self.modules[key]


@cache
def _found(package: str, folders: tuple[str, ...], defines: str) -> dict[str, ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(folders))
    modules = {name.replace("_", "-"): importlib.import_module(f"{package}.{name}") for name in names}
    return {key: module for key, module in sorted(modules.items()) if hasattr(module, defines)}
