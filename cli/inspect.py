"""`onnxslim inspect`: what is in a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from .options import data_options, read_data_options, threads_option, verbose_option


@click.command(short_help="What is in a model.")
@click.argument("model", type=click.Path(path_type=Path))
@data_options
@threads_option
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Heaviest nodes to show.")
@click.option("--groups", is_flag=True, help="Prunable groups of channels: what is tied, and what is pinned and why.")
@click.option("--quant", is_flag=True, help="Where quantization would go, and what stays float and why.")
@click.option("--no-time", is_flag=True, help="Do not run the model.")
@verbose_option
def inspect(
    model: Path,
    top: int,
    groups: bool,
    quant: bool,
    no_time: bool,
    threads: int,
    verbose: bool,
    **values: Any,
) -> None:
    """Show MODEL's inputs, outputs, operators, parameters, multiply-accumulates, bytes and time."""
    from .. import ir

    loaded = ir.load(model)
    ir.shapes.refresh(loaded)
    read = read_data_options(values)
    overview = not (groups or quant)
    runs = groups or (overview and not no_time)
    feed = _feed(model, read) if runs or read["data"] is not None else None  # data are checked whenever they are given
    if groups:
        _groups(loaded, feed, verbose)
    if groups and quant:
        click.echo()
    if quant:
        _quant(loaded)
    if overview:
        _overview(model, loaded, top, feed if runs else None, threads)


def _overview(path: Path, model: Any, top: int, feed: Any, threads: int) -> None:
    """The tables of a model; feed: None where it is not to run."""
    from ..passes import words
    from ..passes.report import file_bytes
    from ..runtime.specs import model_inputs
    from . import show

    total, nodes = _costs(model, feed)
    rows = [
        ("file", f"{path} ({words.size(file_bytes(path))})"),
        ("made by", f"{model.header.producer_name or 'unknown'}, IR version {model.header.ir_version}"),
        ("opsets", ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in model.header.opsets.items())),
        *(("input", str(s)) for s in model_inputs(model).values()),
        *(("output", _describe(t)) for t in model.outputs),
        ("nodes", total.nodes),
        ("parameters", words.count(total.params)),
        ("MACs", words.count(total.macs)),
    ]
    if feed is not None:
        rows.append(("latency", _time(path, feed, threads)))
    show.put("", ("", ""), rows, wide=1)
    click.echo()
    show.put("operators", ("op", "count", "parameters", "MACs"), _by_op(nodes), numeric=(1, 2, 3))
    if top:
        click.echo()
        heavy = sorted(nodes, key=lambda n: (-n.macs, -n.params))[:top]
        shown = [(n.name, n.op, words.count(n.params), words.count(n.macs), _share(n.macs, total.macs)) for n in heavy]
        show.put("heaviest nodes", ("node", "op", "parameters", "MACs", "share"), shown, numeric=(2, 3, 4))


def _costs(model: Any, feed: Any) -> tuple[Any, list[Any]]:
    from ..ir import cost
    from ..passes.pace import sizes

    known = None if feed is None else sizes(model, feed)
    return cost.of(model, known), cost.by_node(model, known)


def _feed(path: Path, values: dict[str, Any]) -> Any:
    from ..ir.errors import DataError
    from .feeding import feeds_for

    if values.get("data") is not None:
        return feeds_for(path, values).first()
    try:
        return feeds_for(path, values).first()
    except DataError:  # no shapes were found that it runs with; what can be said without running is said
        return None


def _time(path: Path, feed: Any, threads: int) -> str:
    from ..passes import words
    from ..runtime import latency

    timed = latency.bench([str(path)], feed, threads=threads, seconds=2.0)[0]
    plural = "" if threads == 1 else "s"
    return f"{words.milliseconds(timed.ms)} ({threads or 'all'} thread{plural}, median of {timed.runs})"


def _by_op(nodes: list[Any]) -> list[tuple[Any, ...]]:
    from ..passes import words

    counts = Counter(n.op for n in nodes)
    params, macs = Counter[str](), Counter[str]()
    for n in nodes:
        params[n.op] += n.params
        macs[n.op] += n.macs
    order = sorted(counts, key=lambda op: (-macs[op], -counts[op], op))
    return [(op, counts[op], words.count(params[op]), words.count(macs[op])) for op in order]


def _describe(tensor: Any) -> str:
    dims = "?" if tensor.shape is None else ",".join("?" if d is None else str(d) for d in tensor.shape)
    return f"{tensor.name}: {getattr(tensor.dtype, 'name', tensor.dtype) or '?'}[{dims}]"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _groups(model: Any, feed: Any, verbose: bool) -> None:
    """What `prune` sees, after `simplify`: groups that may go, then what is pinned."""
    from ..passes import prune, words
    from . import show

    rows = prune.groups(_simplified(model), feed).describe()
    free = [r for r in rows if r.pinned is None]
    shown = [(r.id, r.channels, words.count(r.params), words.count(r.macs), _members(r.members, verbose)) for r in free]
    title = (
        f"{len(free)} groups of channels that may go (those of a group live and die together); parameters and MACs of "
        "one sample are what goes with a whole group, so weights between two groups count in both"
    )
    show.put(title, ("", "channels", "parameters", "MACs", "tied: node (axis)"), shown, numeric=(1, 2, 3), wide=4)
    pinned = [(_members(r.members, verbose), r.channels or "", r.pinned) for r in rows if r.pinned is not None]
    if pinned:
        show.put("\npinned, and why", ("node (axis)", "channels", "reason"), pinned, numeric=(1,), wide=2)


def _members(members: Any, verbose: bool, most: int = 6) -> str:
    """`conv1 (0), conv2 (1)`, cut short unless everything is wanted."""
    found = [f"{node} ({axis})" if axis >= 0 else node for node, axis in members]
    rest = "" if verbose or len(found) <= most else f" and {len(found) - most} more (-v)"
    return ", ".join(found if not rest else found[:most]) + rest


def _quant(model: Any) -> None:
    """Where `quant` could compute in integers on this machine, after `simplify`, and what stays float."""
    from ..passes.quant import eligible, placement, planning
    from ..passes.target import Target
    from . import show

    target = Target.detect()
    simplified = _simplified(model)
    able, skips = eligible.find(simplified, target, lambda node: False)
    wanted = planning.between(simplified, able)  # the pass never quantizes a tail that feeds no linear node
    placed = placement.place(simplified, [n for n in able if n in wanted], target)
    rows = [(d.tensor, f"with {d.group}" if d.how == "shared" else d.how, d.reason) for d in placed.decisions.values()]
    title = f"{len(wanted)} nodes have integer kernels on {target.name}; what would happen to their tensors"
    show.put(title, ("tensor", "scale", "reason"), rows, wide=2)
    tail = "no layer reads what comes of it: integers would save nothing, and force all it gathers into one range"
    kept = [(s.node, s.reason) for s in skips] + [(n, tail) for n in able if n not in wanted]
    if kept:
        show.put("\nstays float, and why", ("node", "reason"), kept, wide=1)


def _simplified(model: Any) -> Any:
    from .. import ir
    from ..passes.simplify import Simplify

    copy = model.copy()
    if copy.header.only_defaults:
        copy.freeze_defaults()
    Simplify().run(copy)
    ir.order.sort(copy)
    ir.shapes.refresh(copy)
    return copy
