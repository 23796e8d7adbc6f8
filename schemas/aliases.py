"""Other names of settings: those that users of other programs know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast


def as_it_is(value: Any, _before: Any) -> Any:
    """The value under the other name is the setting's."""
    return value


@dataclass(frozen=True, slots=True)
class Alias:
    """The setting that is meant. `read(value, before)` makes its value of the one that was given and, if the other name
    says only a `part` of it, of what it is else. `environ`: whether a variable may give it."""

    path: tuple[str, ...]
    read: Callable[[Any, Any], Any] = as_it_is
    part: bool = False
    environ: bool = True


@dataclass(frozen=True, slots=True)
class Aliases:
    """`names` are at the top level of the settings; `idle` are accepted and do nothing, for the reason that is given.
    What was met of those is put into `met_idle`."""

    names: Mapping[str, Alias] = field(default_factory=dict[str, Alias])
    idle: Mapping[str, str] = field(default_factory=dict[str, str])
    met_idle: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def in_environment(self) -> list[str]:
        """Those that a variable may give."""
        return [name for name, alias in self.names.items() if alias.environ] + list(self.idle)

    def applied(self, layer: Mapping[str, Any], under: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
        """A layer of settings under their own names; `under` are the layers below, `own` the names at the top level.
        In one layer a setting's own name counts more."""
        out: dict[str, Any] = {}
        meant: list[tuple[Alias, Any]] = []
        for key, value in layer.items():
            name = str(key).replace("-", "_")
            if key in own:
                out[key] = value
            elif name in self.idle:
                self.met_idle[name] = self.idle[name]
            elif name in self.names:
                meant.append((self.names[name], value))
            else:
                out[key] = value
        for alias, value in meant:
            here = _found(out, alias.path)
            if alias.part or here is None:
                out = _put(out, alias.path, alias.read(value, _below(under, alias.path) if here is None else here))
        return out


def _found(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = values
    for part in path:
        found = cast(Mapping[str, Any], found).get(part) if isinstance(found, Mapping) else None
    return found


def _below(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What the layers below say; a mapping is merged with theirs later."""
    found = _found(values, path)
    return None if isinstance(found, Mapping) else found


def _put(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the values with this one."""
    head, *rest = path
    if not rest:
        return {**values, head: value}
    below = values.get(head)
    inner: Mapping[str, Any] = cast(Mapping[str, Any], below) if isinstance(below, Mapping) else dict[str, Any]()
    return {**values, head: _put(inner, tuple(rest), value)}
