"""What the documentation tells users to type: every command line in it parses, and every option that exists is told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from onnxslim_opt.cli.app import bare, cli
from onnxslim_opt.passes import registry, spec
from onnxslim_opt.passes.target import target_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "model_zoo" / "README.md", ROOT / "model_zoo" / "demo.sh"]


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every line that begins with `onnxslim`; a note after two spaces is cut off."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in text.splitlines():
            found = re.match(r"(?:    )?(onnxslim .*)|`(onnxslim [^`]*)`", line)
            if found:
                yield page.name, re.split(r"\s{2,}|\s#", found[1] or found[2])[0]


CASES = [c for c in commands() if not re.search(r"\.\.\.|\[|\||\bA B\b|\bIN OUT\b|\bMODEL\b", c[1])]


def test_there_are_commands():
    assert len(CASES) > 20
    assert any(page == "demo.sh" for page, _ in CASES)


@pytest.mark.parametrize(("page", "line"), CASES)
def test_a_command_in_the_documentation_parses(page, line, monkeypatch, tmp_path):
    """Down to the names and values of passes' options; nothing is run."""
    monkeypatch.chdir(tmp_path)
    arguments = bare(shlex.split(line)[1:], cli.commands)
    command: click.Command = cli
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context(command.name or "", list(arguments))
    passes = context.params.get("passes")
    known = registry.registry().passes
    if passes and all(part.split(":")[0] in known for part in passes.split(",")):
        assert spec.parse(passes)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_a_command_is_told(name):
    told = (ROOT / "docs" / "cli.md").read_text()
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert any(o in told for o in option.opts), option.opts


def test_every_target_is_named():
    shown = next(o for o in cli.commands["opt"].params if o.name == "target")
    assert f"One of {', '.join(target_names())}." in (shown.help or "")
    assert ", ".join(f"`{name}`" for name in target_names()[1:]) in (ROOT / "docs" / "cli.md").read_text()


def test_every_option_of_quant_is_told():
    table = re.search(r"\| option \|.*?\n\n", (ROOT / "docs" / "quant.md").read_text(), re.S)
    assert table is not None
    for option in spec.options(registry.registry().passes["quant"]):
        assert f"`{option.name}`" in table[0], option.name


@pytest.mark.parametrize("name", ["simplify", "prune", "lowrank", "quant", "dynquant", "weightquant", "fp16"])
def test_every_option_of_a_pass_is_real(name):
    """The table of options on the page of a pass names options that exist."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    table = re.search(r"\| option \|.*?\n\n", text, re.S)
    if table is None:
        return
    known = {o.name for o in spec.options(registry.registry().passes[name])}
    for row in table[0].strip().splitlines()[2:]:
        for option in re.findall(r"`(\w+)(?:=[^`]*)?`", row.split("|")[1]):
            assert option in known, option
