"""libp2p without what we do not use of it, which is most of the time and of the memory that importing it takes.

libp2p's packages import all that is in them: QUIC, websockets, pub/sub, an ACME client. We use its keys, its Noise
handshake and its messages, which need none of that. So the packages named here do not run when they are imported, but
when somebody asks them for a name, as ``from libp2p import new_host`` does, and then are what they ever were.

Nothing happens if libp2p was imported before us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

_PACKAGES: Final = {"libp2p", "libp2p.transport", "libp2p.security", "libp2p.pubsub", "libp2p.network"}
_TYPES: Final = "libp2p.custom_types"
_NAMED_BY_TYPES: Final = ("libp2p.transport.quic.stream", "QUICStream")
"""The one class that libp2p's types import, to name it in an annotation, with all of QUIC behind it."""


def install() -> None:
    """Have libp2p's packages wait from now on."""
    if "libp2p" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Waiting(ModuleType):
    """A package that has not run."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        object.__setattr__(self, "__class__", ModuleType)
        spec.loader.exec_module(self)
        return getattr(self, name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PACKAGES and fullname != _TYPES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Types(spec.loader) if fullname == _TYPES else _Later(spec.loader)
        return spec


class _Later(Loader):
    """Leaves a package waiting."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        object.__setattr__(module, "__class__", _Waiting)


class _Types(_Later):
    """Runs libp2p's types with a stand-in for the class that they name."""

    def exec_module(self, module: ModuleType) -> None:
        name, attribute = _NAMED_BY_TYPES
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        if name in sys.modules:
            self.loader.exec_module(module)
            return
        stand_in = ModuleType(name)
        setattr(stand_in, attribute, type(attribute, (), {"__module__": name}))
        sys.modules[name] = stand_in
        try:
            self.loader.exec_module(module)
        finally:
            del sys.modules[name]
