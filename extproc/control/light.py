"""Envoy's messages at the cost of those that are used: envoy-data-plane's classes as dataclasses made late.

Its modules make about a thousand classes, each a pydantic dataclass whose validator is built at once: 1.2 s
of CPU for some 150 that a configuration consists of. Modules imported through here get a plain dataclass
instead, made when its class is first used. What the validators would find is found elsewhere: mypy sees the
types, the goldens are rendered with the validators on (tests/control), and Envoy reads every file whole.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from betterproto2 import Message

PACKAGE = "envoy_data_plane"
_FIELDS = "__dataclass_fields__"


def install() -> None:
    """Make modules of envoy-data-plane that are imported from now on light ones; twice is once."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        # Asked for with every message that is written, and worked out anew each time: a third of a second.
        message: Any = Message
        once: Any = cache(message._type_hints.__func__)  # noqa: SLF001 (betterproto's own)
        message._type_hints = classmethod(once)  # noqa: SLF001 (betterproto's)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module asks for it by `from pydantic.dataclasses import dataclass`, as nobody else here does.
        import pydantic.dataclasses as pydantic_dataclasses

        theirs = pydantic_dataclasses.dataclass
        pydantic_dataclasses.dataclass = _late  # type: ignore[assignment]  # what these modules use of it
        try:
            self._inner.exec_module(module)
        finally:
            pydantic_dataclasses.dataclass = theirs


def _late(*, config: object = None, **options: Any) -> Callable[[type], type]:  # noqa: ARG001 (pydantic's)
    """`pydantic.dataclasses.dataclass` without its checks, put off until the class is used."""

    def put_off(cls: type) -> type:
        def made() -> None:
            delattr(cls, "__init__")
            delattr(cls, _FIELDS)
            dataclasses.dataclass(**options)(cls)

        def first(self: Any, *arguments: Any, **values: Any) -> None:
            made()
            self.__init__(*arguments, **values)

        cls.__init__ = first  # type: ignore[misc]  # until the dataclass's own
        setattr(cls, _FIELDS, _LazyFields(made))
        return cls

    return put_off


class _LazyFields:
    """A class's fields, asked for before there was an instance (betterproto does, to read one)."""

    def __init__(self, made: Callable[[], None]) -> None:
        self._made = made

    def __get__(self, instance: object, owner: type) -> Any:
        self._made()
        return owner.__dict__[_FIELDS]
