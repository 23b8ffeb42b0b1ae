"""The command line in this process, as the command runs it: exit code, standard output, standard error."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what is wrong."""
        return [line for line in self.err.splitlines() if line.lower().startswith("error:")]


def onnxslim(capsys: Any, *arguments: Any) -> Done:
    """Run `onnxslim ARGUMENTS` as `main` does, without ending the process."""
    from onnxslim_opt.cli.app import cli
    from onnxslim_opt.cli.guard import guarded

    capsys.readouterr()
    words = [str(a) for a in arguments]
    verbose = "-v" in words
    code = guarded(lambda: cli.main(args=words, prog_name="onnxslim", standalone_mode=False), verbose)
    return Done(code, *capsys.readouterr())


def snapshot(folder: Path) -> dict[str, str]:
    """{relative path: hash} of every file, to see that nothing was touched."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }
