"""Where settings come from: the command line, the environment, a TOML file, the defaults, in that order."""

from __future__ import annotations

import difflib
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hivemind_p2p.config import Settings
from hivemind_p2p.errors import ConfigError

ENVIRONMENT_PREFIX = "HIVEMIND_P2P_"


@dataclass(frozen=True)
class _Given:
    """A value as somebody gave it, and where: ``--lr``, ``HIVEMIND_P2P_SERVER__LR``, ``node.toml``."""

    value: object
    source: str


def load_settings(
    overrides: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    toml_path: str | Path | None = None,
) -> Settings:
    """Settings from every source: ``overrides``, then the environment, then the file, then the defaults.

    Args:
        overrides: ``{"node.host_maddrs": [...]}``: what the command line says; its option is ``--host-maddrs``.
        environ: default ``os.environ``. ``HIVEMIND_P2P_NODE__HOST_MADDRS`` is ``node.host_maddrs``; sequences are
            separated by spaces or commas. Other names that start with ``HIVEMIND_P2P_`` are errors.
        toml_path: a file with one table per concern: ``[node]``, ``host_maddrs = ["/ip4/0.0.0.0/tcp/31337"]``.

    Raises:
        ConfigError: the file cannot be read, a name is unknown, or a value does not fit; it says which, and from where.
    """
    given: dict[str, _Given] = {}
    if toml_path is not None:
        given |= _from_toml(Path(toml_path))
    given |= _from_environment(os.environ if environ is None else environ)
    for key, value in (overrides or {}).items():
        given[key] = _Given(value, "--" + key.rpartition(".")[2].replace("_", "-"))

    kinds = typing.get_type_hints(Settings)
    known = {
        f"{concern}.{name}": hint
        for concern, kind in kinds.items()
        for name, hint in typing.get_type_hints(kind).items()
    }
    chosen: dict[str, dict[str, object]] = {concern: {} for concern in kinds}
    for key, item in given.items():
        if key not in known:
            raise ConfigError(f"{item.source}: there is no setting {key!r}{_nearest(key, known)}")
        concern, _, name = key.partition(".")
        try:
            chosen[concern][name] = _convert(item.value, known[key])
        except ValueError as error:
            raise ConfigError(f"{item.source}: {key} = {item.value!r} is not {error}") from None
    return Settings(**{concern: _build(kinds[concern], concern, values, given) for concern, values in chosen.items()})


def _build(kind: type[Any], concern: str, values: Mapping[str, object], given: Mapping[str, _Given]) -> Any:
    try:
        return kind(**values)
    except ConfigError as error:
        sources = sorted({given[f"{concern}.{name}"].source for name in values})
        raise ConfigError(f"{', '.join(sources)}: {error}") from error


def _from_toml(path: Path) -> dict[str, _Given]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    given: dict[str, _Given] = {}
    concerns = [concern.name for concern in fields(Settings)]
    for concern, table in tables.items():
        if concern not in concerns or not isinstance(table, dict):
            raise ConfigError(f"{path}: there is no table [{concern}]{_nearest(concern, concerns)}")
        given |= {f"{concern}.{name}": _Given(value, str(path)) for name, value in table.items()}
    return given


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for variable, value in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            concern, _, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            given[f"{concern}.{name}" if name else concern] = _Given(value, variable)
    return given


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def _convert(value: object, hint: Any) -> object:
    """``value``, which TOML, Python or (as text) the environment gave, as the type ``hint``.

    Raises:
        ValueError: it does not fit; the text says what would: "a whole number".
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        [inner] = [arg for arg in args if arg is not types.NoneType]
        return _convert(value, inner)
    if origin is tuple:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        if not isinstance(value, list | tuple):
            raise ValueError("a list")
        return tuple(_convert(item, args[0]) for item in value)
    if origin is Literal:
        if value not in args:
            raise ValueError("one of " + ", ".join(map(str, args)))
        return value
    convert, description = _SCALARS[hint]
    try:
        return convert(value)
    except (ValueError, TypeError, KeyError, RuntimeError):  # RuntimeError: ~ of a user that is not there
        raise ValueError(description) from None


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]


def _int(value: Any) -> int:
    if isinstance(value, bool | float):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


_SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (_bool, "true or false"),
    int: (_int, "a whole number"),
    float: (_float, "a number"),
    str: (_str, "text"),
    Path: (lambda value: Path(value).expanduser(), "a path"),
}
