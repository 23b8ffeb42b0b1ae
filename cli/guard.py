"""The way into the command line and out of it: one line for every error, and the exit code that goes with it.

0  written and within limits          2    the command line cannot be read
1  refused: model, data or value      3    written, but the limits are not met or a pass failed
130, 143  stopped by Ctrl-C or a termination signal; nothing half-written is left
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import click


class Stopped(BaseException):
    """A signal asked the process to end. Not an Exception, so that no pass can swallow it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Pipe(io.FileIO):
    """A stream that ends no work: its reader may leave (`| head`), the disk behind it be full; the text is dropped.

    lost: why text was dropped that somebody wanted.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or act as if."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.stdout, sys.stderr = patient(sys.stdout), patient(sys.stderr)
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quiet_blas()
    _listen()
    verbose = _verbose(arguments)
    if not verbose:
        warnings.simplefilter("ignore")  # of libraries, about what a user cannot change
    sys.exit(guarded(lambda: _run(arguments), verbose))


def _run(arguments: list[str]) -> object:
    """Run a command. Raises OutputError at its end when what it printed could not be written."""
    from .app import cli

    result = cli.main(args=arguments, prog_name="onnxslim", standalone_mode=False)
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Pipe) and raw.lost is not None:
        from ..ir.errors import OutputError

        raise OutputError(f"cannot write standard output: {raw.lost.strerror or raw.lost}")
    return result


def patient(stream: Any) -> Any:
    """A standard stream by which no run ends: its reader may leave, its disk be full, its encoding lack a sign."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    errors = "replace" if stream.errors in ("strict", "surrogateescape") else stream.errors
    stream.reconfigure(errors=errors)
    try:
        number = stream.fileno()
    except OSError:  # no file of the system's, as in a notebook
        return stream
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):  # the console of Windows
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = io.BufferedWriter(Pipe(number, "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=stream.line_buffering)


def guarded(work: Callable[[], object], verbose: bool = False) -> int:
    """Run `work`; the exit code, with one line on stderr where something went wrong."""
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return 2
    except Stopped as e:
        name = "interrupted" if e.number == signal.SIGINT else "terminated"
        _say(f"{name}; no output was left half-written")
        return 128 + e.number
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; no output was left half-written")
        return 130
    except SystemExit as e:  # of a library's or a pass's: nothing says that the work was done
        return e.code if isinstance(e.code, int) and e.code else 1
    except Exception as e:
        return _explain(e, verbose)


def _explain(error: Exception, verbose: bool) -> int:
    from ..ir.errors import SlimError

    text = " ".join(str(error).split())
    if isinstance(error, SlimError | OSError):
        _say(text)
    else:
        _say(f"internal error: {type(error).__name__}: {text}" + ("" if verbose else " (-v shows where)"))
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    return getattr(error, "exit_code", 1)


def _say(text: str) -> None:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)


def _verbose(arguments: Sequence[str]) -> bool:
    return any(a in ("-v", "--verbose") for a in arguments)


def _quiet_blas() -> None:
    """One BLAS thread unless the user says otherwise; must run before numpy is loaded.

    Spinning BLAS threads fight ONNX Runtime's for the cores (a low-rank plan took 188 s in place of 13 s on two busy
    cores), and a fixed number of threads makes sums repeat to the bit.
    """
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def _listen() -> None:
    """Turn SIGINT and SIGTERM into `Stopped`; what the parent ignores (nohup, a background job) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
