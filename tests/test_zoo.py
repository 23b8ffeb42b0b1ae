"""The model zoo: its models are what the manifest says, its task stands alone, its fetcher is not fooled."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxslim_opt.ir.errors import BadInput, OutputError
from onnxslim_opt.model_zoo import fetch, tasks

from onnxslim_opt import model_zoo

ZOO = Path(model_zoo.__file__).parent
MODELS = model_zoo.list_models()
SHIPPED = [model for model in MODELS if model.source == "shipped"]
PUBLIC = [model for model in MODELS if model.source != "shipped"]


def load_by_path(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("by_path", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- the models


def test_three_models_are_shipped():
    assert [model.name for model in SHIPPED] == ["digits_resnet", "digits_mobilenet", "digits_vit"]
    assert len({model.name for model in MODELS}) == len(MODELS)


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.name)
def test_shipped_file_is_the_documented_one(model):
    path = model_zoo.model_path(model.name)
    assert path == model.path
    assert path.stat().st_size == model.size_bytes < 1_000_000
    assert fetch.digest(path) == model.sha256


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.name)
def test_shipped_accuracy_is_the_documented_one(model):
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    found = tasks.digits_metric(lambda feeds: {"logits": np.asarray(session.run(["logits"], feeds)[0])})
    # another CPU's kernels round differently, which may tip one image that lies on the fence
    assert found == pytest.approx(model.accuracy, abs=1.1 / 600)
    rows = (ZOO / "README.md").read_text("utf-8").splitlines()
    row = next(line for line in rows if line.startswith(f"| `{model.name}`"))
    assert f"| {model.size_bytes:,} | {model.accuracy:.4f} |" in row


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.name)
def test_shipped_models_look_like_users_files(model):
    proto = onnx.load(str(model.path))
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    for value, rest in ((proto.graph.input[0], [1, 32, 32]), (proto.graph.output[0], [10])):
        batch, *dims = value.type.tensor_type.shape.dim
        assert batch.dim_param == "N" and [dim.dim_value for dim in dims] == rest
    ops = {node.op_type for node in proto.graph.node}
    assert ("Softmax" if model.name == "digits_vit" else "BatchNormalization") in ops


def test_public_models_are_pinned_and_credited():
    assert len(PUBLIC) >= 3
    for model in PUBLIC:
        assert model.source.startswith("https://") and model.licence and model.accuracy is None
        assert len(bytes.fromhex(model.sha256)) == 32 and model.size_bytes > 0


def test_public_hashes_are_those_of_the_real_files():
    folder = Path(__file__).parents[2] / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("the shared models are not here")
    known = {fetch.digest(path): path.stat().st_size for path in folder.glob("*.onnx")}
    assert [known.get(model.sha256) for model in PUBLIC] == [model.size_bytes for model in PUBLIC]


def test_build_copies_a_shipped_model(tmp_path):
    assert model_zoo.build("digits_vit", tmp_path) == tmp_path / "digits_vit.onnx"
    assert model_zoo.build("digits_vit", tmp_path / "new" / "m.onnx") == tmp_path / "new" / "m.onnx"
    assert fetch.digest(tmp_path / "new" / "m.onnx") == fetch.digest(tmp_path / "digits_vit.onnx")


def test_unknown_model_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match=r"no model 'resnet'.*digits_resnet"):
        model_zoo.build("resnet", tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the task


def test_splits_are_disjoint_complete_and_balanced():
    with np.load(ZOO / "digits.npz") as stored:
        images, labels, split = stored["images"], stored["labels"], stored["split"]
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert set(split.tolist()) == {0, 1, 2}  # each image is in exactly one part
    assert np.bincount(split).tolist() == [677, 520, 600]
    assert np.bincount(labels[split == 2]).tolist() == [60] * 10
    test = {image.tobytes() for image in images[split == 2]}
    assert not test & {image.tobytes() for image in images[split != 2]}


def test_feeds_are_many_small_and_unlabelled():
    feeds = list(tasks.digits_data())
    assert len(feeds) == 64
    assert {(*feed, feed["image"].shape, feed["image"].dtype.name) for feed in feeds} == {
        ("image", (8, 1, 32, 32), "float32")
    }
    images = np.concatenate([feed["image"] for feed in feeds])
    assert images.min() == 0 and images.max() == 1


def test_feeds_are_not_the_samples_of_the_metric():
    fed = {image.tobytes() for feed in tasks.digits_data() for image in feed["image"]}
    judged: list[np.ndarray] = []

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        judged.extend(feeds["image"])
        return {"logits": np.eye(10, dtype=np.float32)[np.zeros(len(feeds["image"]), int)]}

    assert tasks.digits_metric(run) == pytest.approx(0.1)  # "always zero" is right for a tenth
    assert len(judged) == 600 and not fed & {image.tobytes() for image in judged}


def test_enlargement_is_bilinear():
    ramp = np.arange(8, dtype=np.uint8)[None, None].repeat(8, 1)  # [1, 8, 8], rises by one a column
    big = tasks._enlarge(ramp)[0, 0] * 16
    assert np.array_equal(big, np.tile(np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7), (32, 1)))


def test_tasks_load_by_path_without_the_package():
    module = load_by_path(ZOO / "tasks.py")
    assert np.array_equal(next(module.digits_data())["image"], next(tasks.digits_data())["image"])
    code = (
        "import runpy, sys; names = runpy.run_path(sys.argv[1]); next(names['digits_data']())\n"
        "assert not [m for m in sys.modules if m.startswith(('onnx', 'sklearn', 'torch'))]"
    )
    subprocess.run([sys.executable, "-c", code, str(ZOO / "tasks.py")], check=True, cwd="/")


def test_training_without_torch_says_so(tmp_path):
    code = (
        "import importlib.util as u, runpy, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ZOO / "train.py"), "--out", str(tmp_path / "new")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.strip() == "training needs torch: pip install torch"
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- the fetcher

CONTENT = os.urandom(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One behaviour for each path; `hits` counts the requests."""

    hits = 0

    def do_GET(self) -> None:
        type(self).hits += 1
        getattr(self, f"serve_{self.path.strip('/')}", self.serve_missing)()

    def reply(self, content: bytes, length: int | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def serve_ok(self) -> None:
        self.reply(CONTENT, len(CONTENT))

    def serve_no_length(self) -> None:
        self.reply(CONTENT)

    def serve_wrong(self) -> None:
        self.reply(CONTENT[::-1], len(CONTENT))

    def serve_truncated(self) -> None:
        self.reply(CONTENT[:-1], len(CONTENT))

    def serve_longer(self) -> None:
        self.reply(CONTENT * 2)

    def serve_stalls(self) -> None:
        self.reply(CONTENT[:1000], len(CONTENT))
        self.wfile.flush()
        time.sleep(2)

    def serve_moved(self) -> None:
        self.redirect("/ok")

    def serve_circle(self) -> None:
        self.redirect("/circle")

    def serve_to_ftp(self) -> None:
        self.redirect("ftp://localhost/file")

    def serve_to_file(self) -> None:
        self.redirect("file:///etc/hostname")

    def serve_missing(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["ok", "no_length", "moved"])
def test_fetches_the_expected_file(server, tmp_path, path):
    out = tmp_path / "folder" / "m.onnx"
    assert fetch.download(f"{server}/{path}", out, SHA256, len(CONTENT)) == out
    assert out.read_bytes() == CONTENT
    assert [file.name for file in out.parent.iterdir()] == ["m.onnx"]
    plain = tmp_path / "plain"
    plain.touch()
    assert out.stat().st_mode == plain.stat().st_mode  # others may read it where they may read any file


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", r"the server answered 404 Not Found$"),
        ("wrong", rf"not the expected file \(sha256 [0-9a-f]{{64}}, expected {SHA256}\)$"),
        ("truncated", r"ended after 199999 of 200000 bytes$"),
        ("longer", r"longer than the expected 200000 bytes$"),
        ("stalls", r"cannot be fetched \(timed out\)$"),
        ("circle", r"the server answered 302 .*infinite loop.*$"),
        ("to_ftp", r"ftp://localhost/file: only http and https"),
        ("to_file", r"file:///etc/hostname' is not allowed$"),
    ],
)
@pytest.mark.parametrize("before", [None, b"the file of yesterday"])
def test_anything_else_is_refused_and_leaves_no_trace(server, tmp_path, path, message, before):
    out = tmp_path / "m.onnx"
    if before is not None:
        out.write_bytes(before)
    with pytest.raises(BadInput, match=message) as caught:
        fetch.download(f"{server}/{path}", out, SHA256, len(CONTENT), timeout=0.5)
    assert "\n" not in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://localhost/x", "data:,x", "/etc/hostname", ""])
def test_other_addresses_are_not_opened(tmp_path, url):
    with pytest.raises(BadInput, match="only http and https"):
        fetch.download(url, tmp_path / "m.onnx", SHA256, len(CONTENT))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/m.onnx", "http://no-such-host.invalid/m.onnx", "http://[/", "http://"]
)
def test_no_network_is_one_line(tmp_path, url):
    with pytest.raises(BadInput, match=r"cannot be fetched \(.+\)$") as caught:
        fetch.download(url, tmp_path / "m.onnx", SHA256, len(CONTENT), timeout=5)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_slow_server_does_not_hold_us_for_ever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "DEADLINE", 0.0)
    with pytest.raises(BadInput, match="not done after 0 seconds"):
        fetch.download(f"{server}/ok", tmp_path / "m.onnx", SHA256, len(CONTENT))


def test_a_place_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"m\.onnx: cannot be written \(.+\)$"):
        fetch.download(f"{server}/ok", tmp_path / "file" / "m.onnx", SHA256, len(CONTENT))


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    out = tmp_path / "m.onnx"
    out.write_bytes(b"old")

    def interrupted() -> None:
        with fetch.replacing(out) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_public_models_are_fetched_once(server, tmp_path, monkeypatch):
    row = {
        "name": "one",
        "url": f"{server}/ok",
        "task": "t",
        "description": "d",
        "licence": "l",
        "bytes": len(CONTENT),
        "sha256": SHA256,
    }
    monkeypatch.setattr(model_zoo.tomllib, "loads", lambda text: {"shipped": [], "public": [row]})
    Handler.hits = 0
    assert model_zoo.list_models()[0].path is None
    assert model_zoo.build("one", tmp_path).read_bytes() == CONTENT
    kept = model_zoo.model_path("one")
    assert model_zoo.list_models()[0].path == kept == fetch.cache_dir() / "one.onnx"
    assert Handler.hits == 1
    kept.write_bytes(CONTENT[::-1])  # spoilt on the disk: noticed, and fetched again
    assert model_zoo.model_path("one").read_bytes() == CONTENT
    assert Handler.hits == 2


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_cache_is_below_home_by_default(monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_dir() == tmp_path / ".cache" / "onnxslim-opt"
