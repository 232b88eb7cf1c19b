"""Which code it was: an identity of functions, classes and objects of the user's.

It covers what the code says and what it refers to: constants, defaults, closures, values of its
module, and functions and classes of the user's, wherever they are defined, also inside decorators
of other packages. Code of installed packages counts by its name and version. What code reads from
files, from the environment, by names that it makes up, or from objects of installed packages other
than numbers, containers and plain values such as dtypes is not seen.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import sysconfig
from argparse import Namespace
from collections import deque
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property, partial, partialmethod
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from .schema import digest

_PLAIN = (int, float, complex, str, bytes, type(None), type(...))
_SAID_WHOLE = (range, slice, re.Pattern, Decimal, Fraction, PurePath, date, time, timedelta)
"""Their ``repr`` says all that they hold."""
_SAID_WHOLE_OF_TORCH = ("dtype", "device", "layout", "memory_format")
_UNVERSIONED = {"stagelens", "torch", "numpy", *sys.stdlib_module_names}
"""Results of runs for which nothing is given outlive their versions, too."""
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_MOST = 2000
"""Functions, classes and objects that are described; what is further away counts by its name."""
_OURS = str(Path(__file__).resolve().parents[1])


def code_identity(thing: Any) -> str:
    """An identity of a function, a class or an object, the same in every process.

    Another version of Python may give another one, as it compiles otherwise.
    """
    try:
        said = _Walk().from_here(thing)
    except Exception:  # objects of the user's may raise anything when they are looked at
        behind = _code_behind(thing)
        said = [behind.__module__, behind.__qualname__]
    return digest(said)[:32]


def is_own_code(thing: Any) -> bool:
    """Whether a function, a class, a module or an object's class is not of an installed package."""
    behind = _code_behind(thing)
    if isinstance(behind, FunctionType):
        return not _installed(behind.__code__.co_filename)
    module = behind if isinstance(behind, ModuleType) else sys.modules.get(behind.__module__)
    if module is None or module.__name__ == "__main__":  # made in a session
        return True
    return not _installed(getattr(module, "__file__", None) or "<built-in>")


def _code_behind(thing: Any) -> Any:
    """The function, class or module that says what a thing does."""
    if isinstance(thing, partial):
        return _code_behind(thing.func)
    if isinstance(thing, MethodType):
        return _code_behind(thing.__func__)
    if isinstance(thing, FunctionType) and (inner := inspect.unwrap(thing)) is not thing:
        return _code_behind(inner)  # what a decorator made goes by what is in it
    return thing if isinstance(thing, FunctionType | type | ModuleType) else type(thing)


def _installed(file: str) -> bool:
    if file.startswith(("<built-in", "<frozen", _OURS, *_INSTALLED)):
        return True
    return "site-packages" in Path(file).parts


class _Walk:
    """Describes a thing and what it refers to, the nearest first, each by its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._found: list[Any] = []  # held, as an id is of one object only as long as that exists

    def from_here(self, thing: Any) -> list[Any]:
        """What it is, and what all that it refers to is, in plain JSON."""
        said, number = [self.of(thing)], 0
        while number < len(self._found):
            one = self._found[number]
            said.append(self._described(one) if number < _MOST else type(one).__name__)
            number += 1
        return said

    def of(self, thing: Any) -> Any:
        """A value itself, or the number of what is described later."""
        if isinstance(thing, _PLAIN):
            return [type(thing).__name__, repr(thing)]
        # Whether equal tuples are one object depends on how Python came by its constants.
        if isinstance(thing, tuple | frozenset):
            return [type(thing).__name__, *self._parts(thing)]
        if isinstance(thing, FunctionType | type | ModuleType) and not is_own_code(thing):
            return _by_name(thing)
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._found)
            self._found.append(thing)
        return [type(thing).__name__, self._numbers[id(thing)]]

    def _described(self, thing: Any) -> list[Any]:
        try:
            return self._parts(thing)
        except Exception:  # objects of the user's may raise anything when they are looked at
            return [type(thing).__module__, type(thing).__qualname__]

    def _parts(self, thing: Any) -> list[Any]:
        if isinstance(thing, Mapping):  # sorted: what comes first gets the lower number
            entries = sorted(thing.items(), key=lambda entry: _said(entry[0]))
            return [[_said(key), self.of(value)] for key, value in entries]
        if isinstance(thing, list | tuple | deque):
            return [self.of(each) for each in thing]
        if isinstance(thing, set | frozenset):
            return [self.of(each) for each in sorted(thing, key=_said)]
        if isinstance(thing, partial):
            return [self.of(each) for each in (thing.func, thing.args, thing.keywords)]
        if isinstance(thing, MethodType):
            return [self.of(thing.__self__), self.of(thing.__func__)]
        if isinstance(thing, staticmethod | classmethod):
            return [self.of(thing.__func__)]
        if isinstance(thing, property):
            return [self.of(each) for each in (thing.fget, thing.fset)]
        if isinstance(thing, cached_property):
            return [self.of(thing.func)]
        if isinstance(thing, partialmethod):
            return [self.of(each) for each in (thing.func, thing.args, thing.keywords)]
        if isinstance(thing, ModuleType):
            return [thing.__name__]
        if isinstance(thing, FunctionType):
            return self._function(thing)
        return self._class(thing) if isinstance(thing, type) else self._object(thing)

    def _function(self, function: FunctionType) -> list[Any]:
        if _installed(function.__code__.co_filename):  # a decorator's, around the user's
            # Not what else it holds: caches are filled as it is called.
            return [function.__code__.co_name, self.of(inspect.unwrap(function))]
        used = sorted({name for code in _codes(function.__code__) for name in code.co_names})
        known = {name: function.__globals__[name] for name in used if name in function.__globals__}
        values = {}
        queue = list(known.items())
        for name, value in queue:  # grows: helpers.losses.focal is within two modules
            if not (isinstance(value, ModuleType) and is_own_code(value)):
                values[name] = value
                continue
            there = vars(value)
            queue += [(f"{name}.{each}", there[each]) for each in used if each in there]
            if len(queue) > _MOST:
                break
        closure = [_content(cell) for cell in function.__closure__ or ()]
        more = (function.__defaults__, function.__kwdefaults__, closure, values)
        return [function.__name__, self._code(function.__code__), *map(self.of, more)]

    def _code(self, code: CodeType) -> list[Any]:
        constants = [
            self._code(each) if isinstance(each, CodeType) else self.of(each)
            for each in code.co_consts
        ]
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return [code.co_code.hex(), constants, *map(list, names)]

    def _class(self, kind: type) -> list[Any]:
        code = FunctionType | staticmethod | classmethod | property
        own = {
            name: value
            for name, value in vars(kind).items()
            if isinstance(value, code) or not name.startswith(("__", "_abc_"))
        }
        return [kind.__qualname__, self.of(own), *map(self.of, kind.__bases__)]

    def _object(self, thing: Any) -> list[Any]:
        if (content := _numbers_in(thing)) is not None:
            return content
        kind = self.of(type(thing))
        if hasattr(thing, "__wrapped__"):  # by a cache, say
            return [kind, self.of(thing.__wrapped__)]
        if _is_torch(thing, "nn.Module"):
            held = [dict(getattr(thing, n)) for n in ("_parameters", "_buffers", "_modules")]
            settings = {n: v for n, v in vars(thing).items() if isinstance(v, int | float | str)}
            settings.pop("training", None)
            return [kind, self.of(settings), *map(self.of, held)]
        if isinstance(thing, Namespace | SimpleNamespace):
            return [kind, self.of(vars(thing))]
        # Objects of other packages may hold anything: locks, files, the whole process.
        if not is_own_code(thing):
            return [kind, *_plainly(thing)]
        slots = [name for each in type(thing).__mro__ for name in getattr(each, "__slots__", ())]
        held_in = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
        for name, value in getattr(thing, "__dict__", {}).items():
            # What was worked out when it was first used is there or not.
            if not isinstance(inspect.getattr_static(type(thing), name, None), cached_property):
                held_in[name] = value
        return [kind, self.of(held_in)]


def _by_name(thing: Any) -> list[Any]:
    module = thing.__name__ if isinstance(thing, ModuleType) else str(thing.__module__)
    name = "" if isinstance(thing, ModuleType) else thing.__qualname__
    package = module.partition(".")[0]
    return [module, name, None if package in _UNVERSIONED else _version(package)]


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # it is installed by another name, or not installed at all
        found = getattr(sys.modules.get(package), "__version__", None)
        return None if found is None else str(found)


def _said(thing: Any) -> str:
    """Without the place in memory, which is another one in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _plainly(thing: Any) -> list[str]:
    """Which object of another package it is, if that can be said: a plain value, or by name."""
    torch = sys.modules.get("torch")
    kinds = tuple(getattr(torch, name) for name in _SAID_WHOLE_OF_TORCH) if torch else ()
    if isinstance(thing, (*_SAID_WHOLE, *kinds)):
        return [repr(thing)]
    # Functions that are not written in Python, such as torch.tanh.
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    return [name] if callable(thing) and isinstance(name, str) else []


def _codes(code: CodeType) -> list[CodeType]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [code, *(one for each in inner for one in _codes(each))]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _numbers_in(thing: Any) -> list[Any] | None:
    """Of a tensor, an array or a number of numpy's: dtype, shape and values; else None."""
    numpy = sys.modules.get("numpy")
    if _is_torch(thing, "Tensor"):
        flat = thing.detach().cpu().contiguous().reshape(-1)
        values = flat.view(sys.modules["torch"].uint8).numpy()
    elif numpy is not None and isinstance(thing, numpy.ndarray | numpy.generic):
        values = thing
    else:
        return None
    return [str(thing.dtype), list(thing.shape), hashlib.sha256(values.tobytes()).hexdigest()]


def _is_torch(thing: Any, name: str) -> bool:
    """Whether a thing is of a class of torch, which is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(thing, torch.Tensor if name == "Tensor" else torch.nn.Module)
