"""Fetches a file from the web, or does not: it is the expected one to the byte, or nothing is written.

Size and hash are known beforehand, so a server can neither hand over something else nor fill the disk.
Only http and https addresses are opened, also after a redirect.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from ..ir.errors import BadInput, OutputError

TIMEOUT = 30.0  # seconds without a byte
DEADLINE = 600.0  # seconds for one file altogether; the largest of the manifest needs 31 kbit/s
_BLOCK = 1 << 16


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/onnxslim-opt`, else `~/.cache/onnxslim-opt`; not created here.

    As the XDG base directory specification asks, a relative `$XDG_CACHE_HOME` is ignored.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:  # no home folder at all, as in some containers
        raise OutputError("no home folder to cache models in: set XDG_CACHE_HOME") from error
    return root / "onnxslim-opt"


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `out` when the block ends well, and vanishes when it does not.

    It lies beside `out`, since only within one file system is the move atomic; an existing `out` is replaced.
    Raises OutputError when the place cannot be written.
    """
    part = out.with_name(f".{out.name}.{secrets.token_hex(6)}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # not mkstemp, whose files only their owner may read
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the new name on an empty file
        os.replace(part, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def digest(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def download(url: str, out: Path, sha256: str, size: int, timeout: float = TIMEOUT) -> Path:
    """Writes what `url` serves to `out`, and returns `out`.

    `size` in bytes and `sha256` are what the file must have; `timeout` is in seconds. Raises BadInput with
    one line when there is no connection, no such file, or the wrong one; `out` is then as it was before.
    """
    with replacing(out) as file:
        total, got = hashlib.sha256(), 0
        for block in _blocks(url, size, timeout):
            total.update(block)
            got += len(block)
            file.write(block)
        if got != size:
            raise BadInput(f"{url}: ended after {got} of {size} bytes")
        if total.hexdigest() != sha256:
            raise BadInput(f"{url}: not the expected file (sha256 {total.hexdigest()}, expected {sha256})")
    return out


def cached(name: str, url: str, sha256: str, size: int) -> Path:
    """The file `name` in the cache, fetched if it is not there or is another. Raises as `download`."""
    path = cache_dir() / name
    with contextlib.suppress(OSError):
        if path.stat().st_size == size and digest(path) == sha256:
            return path
    return download(url, path, sha256, size)


def _blocks(url: str, size: int, timeout: float) -> Iterator[bytes]:
    """What `url` serves, in blocks; no more than `size` bytes, no longer than DEADLINE. Raises BadInput."""
    end = time.monotonic() + DEADLINE
    got = 0
    with contextlib.closing(_open(url, timeout)) as response:
        while block := _read(response, url):
            got += len(block)
            if got > size:
                raise BadInput(f"{url}: longer than the expected {size} bytes")
            if time.monotonic() > end:
                raise BadInput(f"{url}: not done after {DEADLINE:.0f} seconds")
            yield block


def _open(url: str, timeout: float) -> Any:
    """The response to a request for `url`."""
    opener = urllib.request.build_opener(_WebRedirects)
    try:
        _require_web(url)
        request = urllib.request.Request(url, headers={"User-Agent": "onnxslim-opt"})
        return opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        reason = " ".join(str(error.reason).split())  # that of a circular redirect has several lines
        raise BadInput(f"{url}: the server answered {error.code} {reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _not_fetched(url, error) from error


def _read(response: Any, url: str) -> bytes:
    """What has arrived, at most a block; empty at the end. (`read` would wait for the block to be full.)"""
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _not_fetched(url, error) from error


def _not_fetched(url: str, error: Exception) -> BadInput:
    reason = getattr(error, "reason", None) or error
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return BadInput(f"{url}: cannot be fetched ({text})")


def _require_web(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise BadInput(f"{url}: only http and https addresses are fetched")


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would follow a redirect to ftp as well."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_web(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
