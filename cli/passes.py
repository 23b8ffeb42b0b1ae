"""`onnxslim passes`: what there is, and the options of each pass, as its dataclass says."""

from __future__ import annotations

from typing import Any

import click


@click.command(short_help="What passes there are, and their options.")
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the passes, or show NAME with its options."""
    from ..passes.registry import registry

    found = registry()
    if name is None:
        _list(found)
    else:
        _one(found.get(name))


def _list(found: Any) -> None:
    from ..passes import spec
    from ..passes.base import LossyPass
    from . import show

    rows = [(n, "lossy" if issubclass(c, LossyPass) else "", spec.summary(c)) for n, c in found.passes.items()]
    show.put("", ("pass", "", "what it does"), rows, wide=2)
    for module, reason in found.broken.items():
        show.err().print(f"{module} could not be loaded: {reason}", style="yellow")


def _one(cls: Any) -> None:
    import inspect as python

    from ..passes import spec
    from . import show

    click.echo(f"{cls.name}\n\n{python.getdoc(cls)}\n")
    rows = [(o.name, o.kind.replace("tuple", "list"), _value(o.default), _help(o)) for o in spec.options(cls)]
    if rows:
        show.put("", ("option", "type", "default", ""), rows, wide=3)
    example = f":{rows[0][0]}=..." if rows else ""
    click.echo(f"\nonnxslim opt model.onnx -p {cls.name}{example}")


def _value(default: Any) -> str:
    """A default as `-p` takes it."""
    if isinstance(default, bool | tuple):
        return str(default).lower() if isinstance(default, bool) else "+".join(map(str, default))
    return "none" if default is None else str(default)


def _help(option: Any) -> str:
    choices = f"one of {', '.join(map(str, option.choices))}" if option.choices else ""
    return "; ".join(part for part in (option.help, choices) if part)
