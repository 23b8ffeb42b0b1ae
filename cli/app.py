"""The group of commands, and the bare form `onnxslim IN OUT` that users of the simplifier of that name know."""

from __future__ import annotations

import difflib

import click

from .bench import bench
from .compare import compare
from .inspect import inspect
from .opt import opt
from .passes import passes
from .sensitivity import sensitivity
from .zoo import zoo


class Group(click.Group):
    """Commands, with `IN OUT` taken as `opt IN -o OUT -p simplify`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the bare form before click looks for a command."""
        return super().parse_args(ctx, bare(args, self.commands))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name what was probably meant when there is no such command."""
        if args and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], list(self.commands), n=1)
            if _is_path(args[0]):
                ctx.fail(f"No such command {args[0]!r}. For a model, write: onnxslim opt {args[0]}")
            hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(self.commands)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def bare(args: list[str], commands: object) -> list[str]:
    """`IN OUT [options]` as `opt IN -o OUT [options]`; anything else as it is."""
    names = commands if isinstance(commands, dict) else {}
    if len(args) < 2 or args[0] in names or any(a.startswith("-") for a in args[:2]):
        return args
    return ["opt", args[0], "-o", args[1], *args[2:]] if _is_path(args[0]) else args


def _is_path(text: str) -> bool:
    return "." in text or "/" in text or "\\" in text


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"onnxslim-opt {version('onnxslim-opt')}")
        ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Make trained ONNX models small and fast, and prove what it cost.

    \b
    onnxslim opt model.onnx -p prune,lowrank,quant --data images/
    onnxslim IN OUT            the same as: opt IN -o OUT -p simplify
    """


for command in (opt, inspect, sensitivity, compare, bench, passes, zoo):
    cli.add_command(command)
