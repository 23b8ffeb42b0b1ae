"""Parts of a model one after the other, against whole runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import pytest
from onnxslim_opt.ir.errors import ModelError
from onnxslim_opt.runtime import relay, shelf, taps
from onnxslim_opt.runtime.relay import Relay, relayed
from onnxslim_opt.runtime.session import Session
from onnxslim_opt.runtime.shelf import Shelf

from onnxslim_opt import ir

MODEL = """g (float[N,4] x, float[1] s) => (float[N,4] y)
    <float[1] s = {2}, float[4,4] w = {1,2,0,0, 0,1,0,3, 0,0,1,0, 1,0,0,1}> {
        a = Mul(x, s)  b = MatMul(a, w)  c = Relu(b)  d = MatMul(c, w)  e = Add(d, a)  f = Tanh(e)  y = MatMul(f, w)
        unread = Exp(y)
    }"""
WAVES = (["x", "b"], ["w", "a", "b"], ["d", "s"], ["e"], ["b", "y"])


class Counted(Sequence[dict[str, np.ndarray]]):
    """Feeds of several batches, that count how often they are read."""

    def __init__(self) -> None:
        rng, self.read = np.random.default_rng(0), 0
        self.feeds = [{"x": rng.standard_normal((n, 4)).astype(np.float32)} for n in (2, 1, 3)]

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index):
        return self.feeds[index]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.read += 1
        return iter(self.feeds)


def agrees(model: ir.Model, waves: Sequence[Sequence[str]], **options: int) -> Counted:
    """Every wave equals what a tap fetches."""
    feeds = Counted()
    taken = 0
    for wave, walk in zip(waves, relayed(model, waves, feeds, **options)):
        tap = taps.Tap(model, wave)
        for feed, values in zip(feeds.feeds, walk, strict=True):
            expected = tap.run(feed)
            assert list(values) == list(dict.fromkeys(wave))
            for name in wave:
                np.testing.assert_allclose(values[name], expected[name], rtol=1e-5)
            taken += 1
    assert taken == len(waves) * len(feeds)
    return feeds


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of the sessions that parts were run in."""
    found: list[int] = []

    def start(model: ir.Model, **options: object) -> Session:
        found.append(len(model.graph.nodes))
        return Session(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(relay, "Session", start)
    return found


def test_every_node_runs_once_and_feeds_are_read_where_they_are_looked_at(runs: list[int]) -> None:
    feeds = agrees(ir.text.parse(MODEL), WAVES)
    assert runs == [2, 2, 1, 2]  # a b, then nothing, c d, e, f y; never what nobody asks for
    assert feeds.read == 2  # of the first wave, and of the one that wants an input


def test_where_nothing_may_be_kept_every_part_begins_at_the_inputs(runs: list[int]) -> None:
    agrees(ir.text.parse(MODEL), WAVES, most=0)
    assert runs == [2, 2, 4, 5, 7]


OPEN = tempfile.TemporaryFile


class Filling:
    """Files that are full after so many arrays, each with half of what did not fit left in it."""

    def __init__(self, room: int):
        self.room, self.made = room, []

    def __call__(self, **options):
        self.made.append(File(self, OPEN(**options)))
        return self.made[-1]


class File:
    """One of these files."""

    def __init__(self, disk: Filling, file):
        self.disk, self.file = disk, file

    def write(self, data: memoryview) -> int:
        self.disk.room -= 1
        if self.disk.room < 0:
            self.file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 4, 8])
def test_a_full_disk_costs_time_only(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    disk = Filling(room)
    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", disk)
    agrees(ir.text.parse(MODEL), WAVES)
    assert disk.room < 0 and all(file.closed for file in disk.made)


def test_what_earlier_parts_left_counts_too() -> None:
    """Skips that are all read at the end: one each would fit, all do not."""
    model = ir.text.parse("""g (float[N,64] x) => (float[N,64] y) {
        a = Relu(x)  b = Tanh(a)  c = Sigmoid(b)  d = Exp(c)  e = Sin(d)  y = Sum(a, b, c, d, e) }""")
    feeds = [{"x": np.full((4, 64), k, np.float32)} for k in range(5)]
    most = 5 * 4 * 64 * 4 * 2  # two tensors of five feeds
    held = Relay(model, feeds, most=most)
    filed = []
    for k, node in enumerate(model.graph.nodes):
        part = [n for n in model.graph.nodes[: k + 1] if n.name not in held.done]
        for _ in held.run(part, [node.outputs[0].name], model.graph.nodes[k + 1 :]):
            filed.append(held.shelf.filed)
    assert 0 < max(filed) <= most


def test_sequences_are_not_kept_but_made_again(runs: list[int]) -> None:
    model = ir.text.parse("""g (float[N,4] x) => (float[M,4] y) { r = Relu(x)  s = SequenceConstruct(r, r)
        z = ConcatFromSequence<axis=0>(s)  q = Tanh(r)  t = SequenceInsert(s, q)
        y = ConcatFromSequence<axis=0>(t) }""")
    agrees(model, (["z"], ["y"]))
    assert runs == [3, 5]


def test_what_only_a_branch_reads_is_kept_for_it() -> None:
    model = ir.text.parse("""g (float[N,4] x, bool c) => (float[N,4] y) <bool c = {1}> { a = Relu(x)  b = Tanh(a)
        y = If(c) <then_branch = yes () => (float[N,4] p) { p = Add(a, b) },
                   else_branch = no () => (float[N,4] q) { q = Sub(a, b) }> }""")
    agrees(model, (["b"], ["y"]))


def test_a_wrong_claim_about_an_output_is_not_held_against_a_part() -> None:
    """ONNX Runtime checks what it is told of inputs, and forgives it of outputs: a boundary is no input to check."""
    model = ir.text.parse("""g (float[N,4] x) => (float[1,4] r, float[N,4] y) { r = Relu(x)  y = Tanh(r) }""")
    agrees(model, (["r"], ["y"]))


def test_sequences_among_the_inputs() -> None:
    model = ir.text.parse("""g (seq(float[N,2]) s) => (float[M,2] y)
        { c = ConcatFromSequence<axis=0>(s)  r = Relu(c)  y = ConcatFromSequence<axis=0>(s) }""")
    feeds = [{"s": [np.ones((2, 2), np.float32)] * n} for n in (2, 1)]
    seen = [[len(v["r"] if "r" in v else v["y"]) for v in walk] for walk in relayed(model, (["r"], ["y"]), feeds)]
    assert seen == [[4, 2], [4, 2]]


def test_optionals_between_parts_and_among_inputs() -> None:
    model = ir.text.parse("""g (optional(float[N,4]) s, float[N,4] x) => (float[M,4] y) { a = Relu(x)  o = Optional(a)
        b = Tanh(a)  z = OptionalGetElement(s)  p = OptionalGetElement(o)  y = Concat<axis=0>(b, z, p) }""")
    feeds = [{"s": np.ones((1, 4), np.float32), "x": np.ones((2, 4), np.float32)}] * 2
    held, nodes = Relay(model, feeds), list(model.graph.nodes)
    for _ in held.run(nodes[:3], ["b"], nodes[3:]):
        pass
    assert [v["y"].shape for v in held.run(nodes[3:], ["y"], [])] == [(5, 4)] * 2


def test_what_hangs_on_constants_is_made_where_it_is_read(runs: list[int]) -> None:
    model = ir.text.parse("""g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,2,0,0, 0,1,0,3, 0,0,1,0, 1,0,0,1}> {
        t = Transpose(w)  u = Neg(t)  a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, u) }""")
    agrees(model, (["a"], ["b"], ["u"], ["y"]))
    assert runs == [3, 1, 2, 3]  # t and u again and again: as constants they cost nothing


def test_random_numbers_are_drawn_once() -> None:
    model = ir.text.parse("""g (float[2,4] x) => (float[2,4] y)
        { n = RandomNormal<shape=[2,4]>()  a = Add(x, n)  y = Sub(a, n) }""")
    feeds = [{"x": np.ones((2, 4), np.float32)}] * 2
    first, last = ([v["a" if "a" in v else "y"] for v in walk] for walk in relayed(model, (["a"], ["y"]), feeds))
    assert not np.allclose(first[0], first[1])
    np.testing.assert_allclose(last, 1.0, rtol=1e-5)


def test_a_name_that_is_not_there_is_said() -> None:
    with pytest.raises(ModelError, match="no tensor 'nowhere'"):
        next(relayed(ir.text.parse(MODEL), [["a"], ["nowhere"]], Counted()))


def test_the_shelf_files_what_does_not_fit() -> None:
    shelf = Shelf(100)
    for k in range(3):
        shelf.put("t", k, np.full((4, 5), k, np.float32))
    assert [shelf.get("t", k).tolist() for k in range(3)] == [np.full((4, 5), k).tolist() for k in range(3)]
    assert (shelf.used, shelf.filed) == (80, 160)
    shelf.drop({"t"})
    assert (shelf.used, shelf.filed) == (0, 0) and ("t", 0) not in shelf


def test_the_shelf_uses_the_room_of_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Filling(1000)
    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", disk)
    rng, held, kept = np.random.default_rng(0), Shelf(0), dict[tuple[str, int], np.ndarray]()
    for turn in range(40):
        name = f"t{turn}"
        for k in range(4):
            kept[name, k] = rng.standard_normal((int(rng.integers(1, 9)), 3)).astype(np.float32)
            held.put(name, k, kept[name, k])
        gone = {f"t{turn - 2}", f"t{turn - 3}"} if turn % 2 else set()
        held.drop(gone)
        kept = {key: v for key, v in kept.items() if key[0] not in gone}
        for key, value in kept.items():
            np.testing.assert_array_equal(held.get(*key), value)
        assert held.filed == sum(v.nbytes for v in kept.values())
    (file,) = disk.made
    assert file.seek(0, 2) <= 5 * 4 * 8 * 3 * 4  # never more than the largest of what lay there at once, and a gap
    held.close()
    assert file.closed


def test_a_value_that_is_put_again_takes_the_place_of_the_first() -> None:
    held = Shelf(0)
    for k in range(3):
        held.put("t", 0, np.full(4, k, np.float32))
    assert held.get("t", 0).tolist() == [2.0] * 4 and held.filed == 16


@pytest.mark.parametrize("value", [
    [np.ones(3), np.zeros(2)],
    np.array(["a", "bc"], object),
    np.ones(3, ml_dtypes.bfloat16),
    np.ones(3, ml_dtypes.float8_e5m2),
    np.float32(2) * np.ones(()),
    np.ones((0, 3)),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([True, False]),
    np.ones(2, np.float16),
])  # fmt: skip
def test_every_kind_of_value_comes_back(value: object) -> None:
    held = Shelf(0)
    held.put("t", 0, value)
    found = held.get("t", 0)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype and found.shape == value.shape and found.tolist() == value.tolist()
    else:
        assert found is value
