"""Parts of a model one after the other, against whole runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from onnxslim_opt.ir.errors import ModelError
from onnxslim_opt.runtime import relay, taps
from onnxslim_opt.runtime.relay import Shelf, relayed
from onnxslim_opt.runtime.session import Session

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


def test_a_full_disk_costs_time_only(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(relay.np, "save", full)
    agrees(ir.text.parse(MODEL), WAVES)
    assert runs == [2, 2, 4, 5, 7]


def test_the_disk_may_fill_up_on_a_later_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    save, count = np.save, [0]

    def filling(path: str, value: np.ndarray) -> None:
        count[0] += 1
        if count[0] > 4:
            raise OSError(28, "No space left on device")
        save(path, value)

    monkeypatch.setattr(relay.np, "save", filling)
    agrees(ir.text.parse(MODEL), WAVES)
    assert count[0] > 4


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


def test_a_name_that_is_not_there_is_said() -> None:
    with pytest.raises(ModelError, match="no tensor 'nowhere'"):
        next(relayed(ir.text.parse(MODEL), [["a"], ["nowhere"]], Counted()))


def test_the_shelf_files_what_does_not_fit() -> None:
    shelf = Shelf(100)
    for k in range(3):
        shelf.put("t", k, np.full(20, k, np.float32))
    assert [shelf.get("t", k)[0] for k in range(3)] == [0, 1, 2] and shelf.filed
    shelf.drop({"t"})
    assert not shelf.held and not shelf.filed and shelf.used == 0


def test_a_file_of_the_shelf_is_never_written_twice() -> None:
    """Names that counted what lay there came back after a drop: another tensor's file was overwritten, then lost."""
    shelf = Shelf(0)
    for k, name in enumerate("abc"):
        shelf.put(name, 0, np.full(2, k, np.float32))
    shelf.drop({"a"})
    shelf.put("d", 0, np.full(2, 3, np.float32))
    assert [shelf.get(n, 0)[0] for n in "bcd"] == [1, 2, 3]
    shelf.drop({"b", "c"})
    shelf.drop({"d"})
    assert not shelf.filed
