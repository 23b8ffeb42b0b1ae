"""Every form of `--data`: arrays, images, protobuf folders, functions, random."""

import itertools
import os
import pathlib

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxslim_opt.ir.errors import DataError, MissingExtra, OptionError
from onnxslim_opt.runtime import DataOptions, Session, resolve
from onnxslim_opt.runtime.functions import is_function, load_function

from onnxslim_opt import ir

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
DYNAMIC = ir.text.parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
BATCH4 = ir.text.parse("g (float[4,3] x) => (float[4,3] y) { y = Relu(x) }")
TWO = ir.text.parse(
    "g (float[N,3] x, float[2,1] state, int64 rate) => (float[N,3] y, float[2,1] s, int64 r)"
    " { y = Relu(x) s = Neg(state) r = Neg(rate) }"
)
IMAGE = ir.text.parse("g (float[1,3,8,6] x) => (float[1,3,8,6] y) { y = Relu(x) }")
DATA = np.arange(30, dtype=np.float32).reshape(10, 3)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_by_name_with_labels_left_out(tmp_path, save):
    save(tmp_path / "d.npz", x=DATA, y=np.arange(10))
    feeds = resolve(tmp_path / "d.npz", DYNAMIC)
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]), DATA)
    assert len(feeds) == 10
    assert feeds.notes == ["the data's 'y' is no input of the model and is left out"]


def test_stored_npz_is_mapped_not_read(tmp_path):
    from onnxslim_opt.runtime.arrays import LazyMember, load_npz

    np.savez(tmp_path / "d.npz", x=DATA, f=np.asfortranarray(DATA), e=np.zeros((0, 3)))
    members = load_npz(tmp_path / "d.npz")
    assert isinstance(members["x"], np.memmap) and isinstance(members["f"], np.memmap)
    np.testing.assert_array_equal(members["x"], DATA)
    np.testing.assert_array_equal(members["f"], DATA)
    assert LazyMember.array(members["e"]).shape == (0, 3)


def test_npz_cut_to_the_fixed_batch(tmp_path):
    np.savez(tmp_path / "d.npz", x=DATA)
    feeds = resolve(tmp_path / "d.npz", BATCH4)
    assert [f["x"].shape for f in feeds] == [(4, 3)] * 2
    assert any("last 2 samples" in n for n in feeds.notes)


def test_npz_with_states_and_scalars(tmp_path):
    states = np.arange(20, dtype=np.float32).reshape(10, 2, 1)
    np.savez(tmp_path / "d.npz", x=DATA, state=states, rate=np.array(16000))
    feeds = list(resolve(tmp_path / "d.npz", TWO))
    assert len(feeds) == 10
    np.testing.assert_array_equal(feeds[3]["state"], states[3])
    assert feeds[3]["rate"].shape == () and feeds[3]["rate"] == 16000


def test_npz_whose_arrays_disagree(tmp_path):
    np.savez(tmp_path / "d.npz", x=DATA, state=np.zeros((7, 2, 1), np.float32), rate=np.zeros(10, np.int64))
    with pytest.raises(DataError, match=r"differ in their number of samples.*'x' 10.*'state' 7"):
        resolve(tmp_path / "d.npz", TWO)


def test_npz_with_another_name(tmp_path):
    np.savez(tmp_path / "d.npz", images=DATA)
    feeds = resolve(tmp_path / "d.npz", DYNAMIC)
    assert feeds.first().keys() == {"x"}
    assert any("taken as the same" in n for n in feeds.notes)


def test_npy_and_arrays_in_python(tmp_path):
    np.save(tmp_path / "d.npy", DATA)
    for spec in (tmp_path / "d.npy", str(tmp_path / "d.npy"), DATA, {"x": DATA}):
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in resolve(spec, DYNAMIC)]), DATA)
    with pytest.raises(DataError, match=r"no input names.*x, state, rate"):
        resolve(tmp_path / "d.npy", TWO)


def test_folders_of_arrays_chain(tmp_path):
    np.savez(tmp_path / "a.npz", x=DATA[:4])
    np.savez(tmp_path / "b.npz", x=DATA[4:])
    np.save(tmp_path / "c.npy", DATA[0])  # one sample without its batch axis
    got = np.concatenate([f["x"] for f in resolve(tmp_path, DYNAMIC)])
    np.testing.assert_array_equal(got, np.concatenate([DATA, DATA[:1]]))


def test_folder_of_npy_named_after_the_inputs(tmp_path):
    np.save(tmp_path / "x.npy", DATA)
    np.save(tmp_path / "state.npy", np.zeros((10, 2, 1), np.float32))
    np.save(tmp_path / "rate.npy", np.full(10, 8000))
    feeds = resolve(tmp_path, TWO)
    assert len(feeds) == 10 and feeds.first()["rate"] == 8000


def test_broken_and_pickled_arrays(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK but not really")
    np.save(tmp_path / "obj.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    for name in ("bad.npz", "obj.npy", "bad.npy"):
        with pytest.raises(DataError, match=name):
            resolve(tmp_path / name, DYNAMIC)


def flipped(data: bytes, start: int) -> bytes:
    """The bytes with a few of them turned over."""
    return data[:start] + bytes(b ^ 0xFF for b in data[start : start + 8]) + data[start + 8 :]


def test_damaged_npz_files_are_named(tmp_path):
    np.savez_compressed(tmp_path / "packed.npz", x=DATA)
    packed = (tmp_path / "packed.npz").read_bytes()
    (tmp_path / "packed.npz").write_bytes(flipped(packed, 60))
    np.savez(tmp_path / "stored.npz", x=DATA, y=DATA)
    stored = (tmp_path / "stored.npz").read_bytes()
    (tmp_path / "stored.npz").write_bytes(stored.replace(b"(10, 3)", b"(20, 3)"))  # ends within the next array
    (tmp_path / "beyond.npz").write_bytes(stored.replace(b"(10, 3)", b"(99, 3)"))
    (tmp_path / "locked.npz").write_bytes(_encrypted(packed))
    for name in ("packed.npz", "stored.npz", "beyond.npz", "locked.npz"):
        with pytest.raises(DataError, match=rf"{name}: array 'x' cannot be read: .*save it anew"):
            resolve(tmp_path / name, DYNAMIC)


def _encrypted(data: bytes) -> bytes:
    """A zip file whose members say that they are encrypted."""
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data = data[: at + place] + b"\x01" + data[at + place + 1 :]
            at = data.find(mark, at + 4)
    return data


# ---------------------------------------------------------------- images


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for k in range(5):
        folder = tmp_path / f"class{k % 2}"
        folder.mkdir(exist_ok=True)
        image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / f"{k}.png")
    (tmp_path / "class0" / ".hidden.png").write_bytes(b"no image")
    return tmp_path


def test_images_take_their_size_from_the_model(pictures):
    feeds = resolve(pictures, IMAGE)
    assert len(feeds) == 5
    x = feeds.first()["x"]
    assert x.shape == (1, 3, 8, 6) and x.dtype == np.float32
    assert x.min() >= 0 and x.max() <= 1
    assert any("--image-mean" in n for n in feeds.notes)


def test_images_options(pictures):
    plain = resolve(pictures, IMAGE).first()["x"]
    options = DataOptions(image_mean=(0.5, 0.4, 0.3), image_std=(0.2,))
    normed = resolve(pictures, IMAGE, options).first()["x"]
    np.testing.assert_allclose(normed, (plain - np.float32([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / 0.2, rtol=1e-5)
    raw = resolve(pictures, IMAGE, DataOptions(image_mean=(123.0,), image_std=(58.0,))).first()["x"]
    np.testing.assert_allclose(raw, (plain * 255 - 123) / 58, rtol=1e-4, atol=1e-5)
    last = ir.text.parse("g (float[N,H,W,3] x) => (float[N,H,W,3] y) { y = Relu(x) }")
    assert resolve(pictures, last, DataOptions(image_size=(8, 6))).first()["x"].shape == (1, 8, 6, 3)
    np.testing.assert_array_equal(
        resolve(pictures, last, DataOptions(image_size=(8, 6))).first()["x"].transpose(0, 3, 1, 2), plain
    )


def test_images_for_bytes_gray_and_batches(pictures):
    whole = ir.text.parse("g (uint8[2,1,8,8] x) => (uint8[2,1,8,8] y) { y = Identity(x) }")
    feeds = resolve(pictures, whole)
    x = feeds.first()["x"]
    assert x.dtype == np.uint8 and x.shape == (2, 1, 8, 8) and x.max() > 100
    assert len(feeds) == 2 and any("last 1 images" in n for n in feeds.notes)


def test_images_need_a_size(pictures):
    open_size = ir.text.parse("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    with pytest.raises(OptionError, match="--image-size"):
        resolve(pictures, open_size)
    with pytest.raises(DataError, match="channels"):
        resolve(pictures, ir.text.parse("g (float[N,7,8,8] x) => (float[N,7,8,8] y) { y = Relu(x) }"))
    with pytest.raises(OptionError, match="image mean has 2 values"):
        resolve(pictures, IMAGE, DataOptions(image_mean=(1.0, 2.0)))


def test_image_options_without_effect_are_named(pictures):
    def told(data, **options) -> list[str]:
        return [n for n in resolve(data, IMAGE, DataOptions(**options)).notes if "no effect" in n]

    given = {"image_mean": (0.5,), "preprocess": lambda path: np.zeros((3, 4, 4), np.float32)}
    names = "--image-mean, --preprocess have no effect: "
    arrays = {"x": np.zeros((2, 3, 4, 4), np.float32)}
    assert told(arrays, **given) == [names + "the data is no folder of images"]
    assert told(None, **given) == [names + "there is no data"]
    assert told(pictures, **given) == ["--image-mean has no effect: --preprocess makes the arrays"]
    assert told(pictures, image_mean=(0.5,)) == told(arrays) == []


@pytest.mark.parametrize("options", [{"image_scale": np.nan}, {"image_mean": (np.nan,)}, {"image_std": (np.inf,)}])
def test_image_options_are_finite(pictures, options):
    with pytest.raises(OptionError, match="finite"):
        resolve(pictures, IMAGE, DataOptions(**options))


def test_preprocess_function(pictures, tmp_path):
    script = tmp_path / "pre.py"
    script.write_text(
        "import numpy as np\n"
        "def one(path):\n    return np.full((3, 8, 6), len(path.name), np.float32)\n"
        "def named(path):\n    return {'x': np.zeros((1, 3, 8, 6), np.float32)}\n"
        "def bad(path):\n    raise ValueError('cannot')\n"
    )
    images = [p for p in pictures.rglob("*.png") if not p.name.startswith(".")]
    folder = images[0].parent
    assert (resolve(folder, IMAGE, DataOptions(preprocess=f"{script}:one")).first()["x"] == 5).all()
    assert not resolve(folder, IMAGE, DataOptions(preprocess=f"{script}:named")).first()["x"].any()
    with pytest.raises(DataError, match=r"preprocess raised ValueError on .*png: cannot"):
        resolve(folder, IMAGE, DataOptions(preprocess=f"{script}:bad")).first()


def test_undecodable_image_and_missing_pillow(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    (tmp_path / "a.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        resolve(tmp_path, IMAGE).first()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'onnxslim-opt\[images\]'"):
        resolve(tmp_path, IMAGE).first()


@pytest.mark.parametrize("what", ["header", "chunk", "bomb"])
def test_damaged_images_are_named(pictures, what):
    path = pictures / "class0" / "0.png"
    data = path.read_bytes()
    head = {
        "header": data[:11] + b"\x05",
        "chunk": data[:33] + b"\0\0\0\x05\0N'\x9c",
        "bomb": data[:16] + b"\0\1\0\0" * 2,
    }
    path.write_bytes(head[what] + data[len(head[what]) :])
    with pytest.raises(DataError, match=r"0\.png cannot be decoded as an image: .*; mend it or take it out"):
        list(resolve(pictures, IMAGE))


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_gray_images_keep_their_ramp(tmp_path, channels):
    """Pillow clips what is above 255 to white."""
    image = pytest.importorskip("PIL.Image")
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image.fromarray(ramp).save(tmp_path / "a.png")
    image.fromarray(ramp).save(tmp_path / "b.tif")
    (tmp_path / "c.pgm").write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    (tmp_path / "d.pgm").write_bytes(b"P5 16 16 1000\n" + (ramp // 66).astype(">u2").tobytes())
    model = ir.text.parse(f"g (uint8[1,{channels},16,16] x) => (uint8[1,{channels},16,16] y) {{ y = Identity(x) }}")
    for feed in resolve(tmp_path, model):
        expected = np.broadcast_to(np.arange(256).reshape(16, 16), (1, channels, 16, 16))
        np.testing.assert_allclose(feed["x"].astype(int), expected, atol=3)
        assert feed["x"].min() == 0


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, kind):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has .* of an unknown range .*--preprocess"):
        resolve(tmp_path, IMAGE).first()


# ---------------------------------------------------------------- test_data_set folders


def test_model_zoo_test_data(tmp_path):
    for k in (10, 2, 0):
        folder = tmp_path / f"test_data_set_{k}"
        folder.mkdir()
        arrays = {"x": np.full((1, 3), k, np.float32), "state": np.zeros((2, 1), np.float32), "rate": np.array(k)}
        for i, (name, array) in enumerate(arrays.items()):
            proto = numpy_helper.from_array(array, name if k else "")
            (folder / f"input_{i}.pb").write_bytes(proto.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"")
    feeds = resolve(tmp_path, TWO)
    assert [int(f["rate"]) for f in feeds] == [0, 2, 10]
    assert len(resolve(tmp_path / "test_data_set_2", TWO)) == 1
    for damaged in (b"\xff\xff", onnx.TensorProto(data_type=99).SerializeToString()):
        (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(damaged)
        with pytest.raises(DataError, match=r"input_0\.pb"):
            resolve(tmp_path, TWO).first()


def test_onnx_own_node_cases_have_this_form(tmp_path):
    proto = onnx.SequenceProto(name="x", elem_type=onnx.SequenceProto.TENSOR)
    proto.tensor_values.extend([numpy_helper.from_array(np.ones(2, np.float32))])
    (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
    text = '<ir_version: 8, opset_import: ["":17]> g (seq(float[N]) x) => (seq(float[N]) y) { y = Identity(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    feed = resolve(tmp_path, model).first()
    np.testing.assert_array_equal(Session(model).run(feed)["y"][0], [1, 1])


# ---------------------------------------------------------------- functions


@pytest.fixture
def script(tmp_path):
    (tmp_path / "helper_beside.py").write_text("VALUE = 7\n")
    path = tmp_path / "feeds.py"
    path.write_text(
        "import numpy as np\n"
        "import helper_beside\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass D:\n    n: int = 3\n"
        "def data():\n"
        "    import helper_beside as again\n"
        "    for i in range(D().n):\n"
        "        yield {'x': np.full((1, 3), again.VALUE + i, np.float32)}\n"
        "def listed():\n    return list(data())\n"
        "LIST = [{'x': np.zeros((1, 3), np.float32)}]\n"
        "def number():\n    return 3\n"
        "def metric(run):\n    return 1.0\n"
    )
    return path


@pytest.mark.parametrize(("name", "count"), [("data", 3), ("listed", 3), ("LIST", 1)])
def test_functions_of_a_file(script, name, count, monkeypatch):
    monkeypatch.chdir(script.parent)
    before = list(__import__("sys").path)
    for spec in (f"{script}:{name}", f"feeds.py:{name}"):
        feeds = resolve(spec, DYNAMIC)
        assert len(feeds) == len(list(feeds)) == count
    assert __import__("sys").path == before


def test_a_script_that_changes_its_working_folder_changes_its_own(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "s.py").write_text(
        "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\nopen('here', 'w').write('a')\n"
        "def feeds():\n    yield open('here').read()\n    os.chdir('/')\n    yield os.getcwd()\n"
        "def load(path):\n    return path.read_text()\n"
        "def metric(run):\n    os.chdir('/')\n    return run('here'), os.getcwd()\n"
    )
    monkeypatch.chdir(tmp_path)
    pathlib.Path("here").write_text("b")
    feeds, load, metric = (load_function(f"inner/s.py:{name}") for name in ("feeds", "load", "metric"))
    places = [(item, os.getcwd()) for item in feeds()]
    assert places == [("a", str(tmp_path)), (os.path.abspath("/"), str(tmp_path))]
    assert load(pathlib.Path("here")) == "b"
    assert metric(lambda name: pathlib.Path(name).read_text()) == ("b", os.path.abspath("/"))
    assert os.getcwd() == str(tmp_path)


def test_functions_that_are_not_there(script, tmp_path):
    assert is_function("a.py:b") and is_function("C:\\x\\a.py:b") and not is_function("a.py") and not is_function(3)
    assert load_function(f"{script}:metric")(None) == 1.0
    with pytest.raises(OptionError, match=r"there is no file .*none\.py"):
        resolve(f"{tmp_path}/none.py:f", DYNAMIC)
    with pytest.raises(OptionError, match=r"defines no 'nope'; it has .*data"):
        resolve(f"{script}:nope", DYNAMIC)
    with pytest.raises(DataError, match=r"feeds\.py:FUNC"):
        resolve(str(script), DYNAMIC)
    with pytest.raises(DataError, match="returned a int"):
        len(resolve(f"{script}:number", DYNAMIC))
    (tmp_path / "broken.py").write_text("1/0\n")
    with pytest.raises(OptionError, match="raised ZeroDivisionError: division by zero"):
        resolve(f"{tmp_path}/broken.py:f", DYNAMIC)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(DataError, match=r"does not exist; --data takes an \.npz"):
        resolve(tmp_path / "none", DYNAMIC)
    with pytest.raises(DataError, match="is empty"):
        resolve(tmp_path, DYNAMIC)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"nothing that can be read \(it holds \.txt\)"):
        resolve(tmp_path, DYNAMIC)
    with pytest.raises(DataError, match="none of"):
        resolve(tmp_path / "a.txt", DYNAMIC)
    with pytest.raises(DataError, match="is a int"):
        resolve(3, DYNAMIC)


# ---------------------------------------------------------------- random


def test_random_feeds_are_seeded_and_say_so():
    feeds = resolve("random", TWO)
    assert feeds.source == "random" and len(feeds) == 8
    first = [f["x"].tobytes() for f in feeds]
    assert first == [f["x"].tobytes() for f in resolve(None, TWO)]
    assert len(set(first)) == 8
    assert first != [f["x"].tobytes() for f in resolve(None, TWO, DataOptions(seed=1))]
    assert len(resolve(None, TWO, DataOptions(samples=3))) == 3
    assert len(resolve(None, TWO).split()[1]) == 2


def test_random_values_suit_their_type():
    model = ir.text.parse(
        "g (uint8[1,40] b, bool[9] t, int64[1,50] ids, int64[1,50] attention_mask, float16[2] h, string[1] s)"
        " => (uint8[1,40] bo, bool[9] to, float[1,50,2] e, int64[1,50] m, float16[2] ho, string[1] so)"
        " <float[5,2] table = {1,2,3,4,5,6,7,8,9,10}>"
        " { bo = Identity(b) to = Not(t) e = Gather(table, ids) m = Neg(attention_mask) ho = Neg(h) so = Identity(s) }"
    )
    feed = resolve(None, model).first()
    Session(model).run(feed)
    assert feed["b"].max() > 100 and set(feed["ids"].ravel()) == {0, 1, 2, 3, 4}
    assert (feed["attention_mask"] == 1).all() and feed["h"].dtype == np.float16


def test_random_shapes_are_found_by_running():
    model = ir.text.parse(  # channels from the weight, a height and width that survive the pooling
        "g (float[N,C,H,W] x) => (float[A,B,D,E] y) <float[2,5,3,3] w = {" + ",".join(["1"] * 90) + "}>"
        " { a = Conv(x, w) y = AveragePool<kernel_shape=[100,100]>(a) }"
    )
    assert resolve(None, model).first()["x"].shape == (1, 5, 224, 224)
    fixed = resolve(None, model, DataOptions(input_shapes={"x": (2, 5, 128, 130)}))
    assert fixed.first()["x"].shape == (2, 5, 128, 130)


def test_random_shapes_that_cannot_be_found():
    picky = ir.text.parse(
        "g (float[N] x) => (float[A,B] y) <int64[2] s = {7, 11}> { y = Reshape(x, s) }",
    )
    with pytest.raises(DataError, match="--input-shape"):
        resolve(None, picky).first()
    assert resolve(None, picky, DataOptions(input_shapes={"x": (77,)})).first()["x"].shape == (77,)
    with pytest.raises(DataError, match="does not fit"):
        resolve(None, picky, DataOptions(input_shapes={"x": (7, 11)})).first()


# ---------------------------------------------------------------- the shared models

NAMES = sorted(p.stem for p in (SHARED / "models").glob("*.onnx")) if SHARED.exists() else []


@pytest.mark.parametrize("name", NAMES)
def test_every_shared_model_runs_on_random_feeds(name):
    model = ir.load(SHARED / "models" / f"{name}.onnx")
    out = Session(model).run(resolve(None, model).first())
    assert all(np.isfinite(v).all() for v in out.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_shared_task_resolves(name):
    pytest.importorskip("PIL")
    model = ir.load(SHARED / "models" / f"{name}.onnx")
    feeds = resolve(f"{SHARED}/tasks.py:{name}_data", model, DataOptions(samples=6))
    fit, check = feeds.split()
    assert (len(fit), len(check)) == (4, 2) and not check.shared
    session = Session(model)
    for feed in itertools.islice(check, 1):
        session.run(feed)
    assert bool(feeds.notes) == (name == "vit_pgd_2_3_16")
