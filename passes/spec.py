"""The text form of passes, both ways: `prune:ratio=0.3,lowrank:energy=0.98` and the frozen dataclasses.

A value in double quotes holds what would end it else, with its own quotes doubled: `quant:exclude="mm{1,2}"`.

Nothing about a pass is written twice: its options, their types, defaults and help are read off the dataclass. A field
may carry `metadata={"help": ..., "choices": (...), "min": ..., "max": ...}`; what the dataclass itself refuses
(`__post_init__` raising ValueError or OptionError) is told with the name of the pass.
"""

from __future__ import annotations

import builtins
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Union

from ..ir.errors import OptionError
from .base import Pass
from .registry import Registry, nearest, registry

NO_PASS = "no pass is named; `onnxslim passes` lists them"
PLAIN = {int, float, bool, str, type(None)}
TRUE, FALSE, NOTHING = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")
QUOTED = re.compile(r'(?:(?<=[=+])|\A)\s*"((?:[^"]|"")*)"(?=\s*(?:[:,+]|\Z))')
"""A quoted value, or part of a list: behind the sign that opens it, before the one that ends it."""
BARE = re.compile(r'(?:(?!\s)[^",:]+(?<!\s))?(?::\d+)*')
"""Text that needs no quotes; numbers behind colons are put back by `_joined`."""


@dataclass(frozen=True)
class Option:
    """One option of a pass, as help and messages show it."""

    name: str
    kind: str
    default: Any
    help: str = ""
    choices: tuple[Any, ...] = ()


def parse(text: str, known: Registry | None = None) -> tuple[Pass, ...]:
    """Passes of `name:key=value:key=value,name2`. Raises OptionError naming the part that is wrong."""
    parts = [part.strip() for part in _split(text, ",")]
    if not any(parts):
        raise OptionError(NO_PASS)
    if not all(parts):
        raise OptionError(f"empty pass name in {text!r}; passes are joined by single commas")
    return tuple(_one(part, known or registry()) for part in parts)


def build(name: str, values: Mapping[str, Any], known: Registry | None = None) -> Pass:
    """The pass `name` with these options; texts are read by the type of the field."""
    cls = (known or registry()).get(name)
    table = {f.name: f for f in fields(cls) if f.init}
    read = {}
    for key, value in values.items():
        key = key.replace("-", "_")
        if key not in table:
            raise OptionError(f"pass {name!r} has no option {key!r}{nearest(key, table)}")
        read[key] = _value(cls, table[key], value)
    try:
        return cls(**read)
    except (ValueError, TypeError, OptionError) as e:
        raise OptionError(f"pass {name!r}: {e}") from None


def checked(p: Pass) -> Pass:
    """A pass that was made in Python, with its options refused or taken as `build` does: plain numbers, within limits.

    Looked at are options that hold a number, a truth value, a text or a list of one of these, and passes inside a pass;
    defaults and all other types are left alone.
    """
    read = {f.name: _made(type(p), f, getattr(p, f.name)) for f in fields(p) if f.init}
    new = {k: v for k, v in read.items() if v is not getattr(p, k)}
    return replace(p, **new) if new else p


def show(passes: Pass | Iterable[Pass]) -> str:
    """The text that `parse` reads back: options that differ from their defaults, in the order of the fields."""
    several = (passes,) if isinstance(passes, Pass) else passes
    return ",".join(_show_one(p) for p in several)


def chosen(p: Pass) -> dict[str, Any]:
    """Every option of a pass and its value, JSON-ready, for the report."""
    return {f.name: _plain(getattr(p, f.name)) for f in fields(p) if f.init}


def options(cls: type[Pass]) -> tuple[Option, ...]:
    """What may be set on a pass."""
    return tuple(_option(cls, f) for f in fields(cls) if f.init)


def summary(cls: type[Pass]) -> str:
    """The first paragraph of the docstring on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


class Quoted(str):
    """A value that stood in quotes: text wherever text is allowed, and one part of a list."""


def _split(text: str, mark: str) -> list[str]:
    """`text` at every mark outside quotes."""
    masked = QUOTED.sub(lambda found: "_" * len(found[0]), text)
    at = [k for k, sign in enumerate(masked) if sign == mark]
    return [text[a + 1 : b] for a, b in zip([-1, *at], [*at, len(text)], strict=True)]


def _unquoted(text: str) -> str:
    found = QUOTED.fullmatch(text)
    return Quoted(found[1].replace('""', '"')) if found else text


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _one(part: str, known: Registry) -> Pass:
    name, *settings = _split(part, ":")
    values: dict[str, str] = {}
    for setting in _joined(settings):
        key, equals, value = setting.partition("=")
        if not equals:
            raise OptionError(f"pass {name!r}: {setting!r} is not of the form key=value")
        if key.strip() in values:
            raise OptionError(f"pass {name!r}: option {key.strip()!r} is given twice")
        values[key.strip()] = _unquoted(value.strip())
    return build(name.strip(), values, known)


def _joined(settings: Sequence[str]) -> list[str]:
    """Settings, with a number that stands alone put back behind the colon of its value: `nm=2:4`."""
    found: list[str] = []
    for setting in settings:
        if setting.strip().isdecimal() and found and "=" in found[-1]:
            found[-1] += f":{setting.strip()}"
        else:
            found.append(setting)
    return found


def _value(cls: type[Pass], f: Field[Any], raw: Any, take: Callable[[Any, Any], Any] | None = None) -> Any:
    try:
        value = (take or _taken)(raw, _type(cls, f))
        _within(value, f.metadata)
    except (ValueError, OverflowError) as e:
        raise OptionError(f"pass {cls.name!r}: {f.name}={raw}: {e}") from None
    return value


def _made(cls: type[Pass], f: Field[Any], value: Any) -> Any:
    """An option as Python gave it; text stays text, where a number is due it is refused."""
    if isinstance(value, (tuple, list)) and any(isinstance(v, Pass) for v in value):
        return tuple(checked(v) if isinstance(v, Pass) else v for v in value)
    kind = _annotation(cls, f)
    plain = all(m in PLAIN or _element(m) in PLAIN for m in _members(kind))
    return _value(cls, f, value, _check) if plain and value is not f.default else value


def _taken(value: Any, kind: Any) -> Any:
    return _read(value, kind) if isinstance(value, str) else _check(value, kind)


def _read(text: str, kind: Any) -> Any:
    """`text` as a value of the annotated type. Raises ValueError saying what was expected."""
    if _is_union(kind):
        return _read_union(text, typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return _read_literal(text, typing.get_args(kind))
    if _is_list(kind):
        parts = [text] if isinstance(text, Quoted) else [_unquoted(part) for part in _split(text, "+") if part]
        return tuple(_read(part, _inner(kind)) for part in parts)
    if kind is bool:
        return _read_bool(text)
    if kind in (int, float):
        return _read_number(text, kind)
    return str(text)


def _read_union(text: str, members: tuple[Any, ...]) -> Any:
    quoted = isinstance(text, Quoted)
    if type(None) in members and text.lower() in NOTHING and not (quoted and str in members):
        return None
    for member in sorted((m for m in members if m is not type(None)), key=lambda m: (m is str) != quoted):
        try:
            return _read(text, member)
        except ValueError as e:
            reason = e
    raise reason


def _read_literal(text: str, members: tuple[Any, ...]) -> Any:
    for member in members:
        if str(member) == text:
            return member
    raise ValueError(f"expected one of {', '.join(map(str, members))}")


def _read_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError("expected true or false")


def _read_number(text: str, kind: type) -> Any:
    percent = kind is float and text.endswith("%")
    try:
        value = kind(text[:-1]) / 100 if percent else kind(text)
    except ValueError:
        raise ValueError(f"expected {'a whole number' if kind is int else 'a number'}") from None
    return _finite(value)


def _finite(value: Any) -> Any:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _check(value: Any, kind: Any) -> Any:
    """A value with a type of its own (from TOML or Python), where the option's type allows it; numbers become plain."""
    members = _members(kind)
    lists = [m for m in members if _is_list(m)]
    simple = tuple(m for m in members if isinstance(m, type) and m not in lists and m is not Any)
    if lists and isinstance(value, (list, tuple)):
        inner = _element(lists[0])
        items = [v if inner is None else _check(v, inner) for v in value]
        return items if typing.get_origin(lists[0]) is list else tuple(items)
    if not isinstance(value, bool):
        if int in simple and isinstance(value, Integral):
            return int(value)
        if float in simple and isinstance(value, Real):
            return _finite(float(value))
    wrong = not isinstance(value, simple) or (isinstance(value, bool) and bool not in simple)
    if wrong and len(simple) + len(lists) == len(members):
        raise ValueError(f"expected {_name(kind).replace('tuple', 'list')}")
    return value


def _within(value: Any, limits: Mapping[str, Any]) -> None:
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        raise ValueError(f"expected one of {', '.join(map(str, choices))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = limits.get("min"), limits.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"expected a value between {'-inf' if low is None else low} and {high or 'inf'}")


def _type(cls: type, f: Field[Any]) -> Any:
    """What a field takes, by its annotation; by its default, or text, where the annotation's names are unknown."""
    kind = _annotation(cls, f)
    return kind if kind is not None else str if f.default is MISSING or f.default is None else type(f.default)


def _annotation(cls: type, f: Field[Any]) -> Any:
    """The annotation of a field, evaluated where its class was written; None where its names are unknown by then."""
    if not isinstance(f.type, str):
        return f.type
    owner = next((c for c in cls.__mro__ if f.name in inspect.get_annotations(c)), cls)
    scope = {**vars(builtins), **vars(typing), **vars(sys.modules[owner.__module__])}
    try:
        return eval(f.type, scope)  # the text of our own annotation, not of a user
    except (NameError, TypeError, SyntaxError):
        return None


def _option(cls: type[Pass], f: Field[Any]) -> Option:
    kind = _type(cls, f)
    literal = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    default = f.default if f.default is not MISSING else None
    return Option(f.name, _name(kind), default, f.metadata.get("help", ""), tuple(f.metadata.get("choices", literal)))


def _name(kind: Any) -> str:
    if _is_union(kind):
        return " | ".join(_name(m) for m in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if _is_union(kind) else (kind,)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list, Sequence) or kind in (tuple, list)


def _element(kind: Any) -> Any:
    """The one type that every item of a list has; None where there is none."""
    kinds = {a for a in typing.get_args(kind) if a is not Ellipsis}
    return kinds.pop() if _is_list(kind) and len(kinds) == 1 else None


def _inner(kind: Any) -> Any:
    """What a list holds; texts where nothing says so."""
    return next((a for a in typing.get_args(kind) if a is not Ellipsis), str)


def _show_one(p: Pass) -> str:
    parts = [p.name]
    for f in fields(p):
        value = getattr(p, f.name)
        if f.init and (f.default is MISSING or value != f.default):
            parts.append(f"{f.name}={_quoted(value) if _misread(value, _type(type(p), f)) else _text(value)}")
    return ":".join(parts)


def _misread(value: Any, kind: Any) -> bool:
    """Whether a text would be read as something else its field allows: a number, or nothing."""
    return isinstance(value, str) and _is_union(kind) and str in typing.get_args(kind) and _read(value, kind) != value


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if BARE.fullmatch(value) else _quoted(value)
    if isinstance(value, (tuple, list, frozenset, set)):
        return "+".join(_part(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value))
    return repr(value) if isinstance(value, float) else str(value)


def _part(value: Any) -> str:
    """One part of a list; in quotes where it is empty or a sign would cut the list."""
    return _quoted(value) if isinstance(value, str) and (not value or {"+", ":"} & set(value)) else _text(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
