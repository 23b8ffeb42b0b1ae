"""The command line: click commands, and how a report is shown. `main` is the command `onnxslim`."""

from .guard import main

__all__ = ["main"]
