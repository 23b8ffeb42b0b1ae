"""Feeds: re-iterable views, caching, splitting; every kind of bad feed is refused with its place."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from onnxslim_opt.ir.errors import DataError, OptionError
from onnxslim_opt.runtime import DataOptions, Session, rename_feeds, resolve
from onnxslim_opt.runtime.feeds import DEFAULT_SAMPLES, Feeds, checksum, spaced

from onnxslim_opt import ir

MODEL = ir.text.parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
FIXED = ir.text.parse("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
TWO = ir.text.parse("g (float[N,3] x, int64[N] k) => (float[N,3] y, int64[N] m) { y = Relu(x) m = Neg(k) }")


def rows(n, name="x"):
    return [{name: np.full((1, 3), i, np.float32)} for i in range(n)]


def marks(feeds):
    return [float(f["x"][0, 0]) for f in feeds]


def test_lists_iterate_again_and_know_their_length():
    feeds = resolve(rows(5), MODEL)
    assert len(feeds) == 5
    assert feeds.source == "data"
    assert marks(feeds) == marks(feeds) == [0, 1, 2, 3, 4]
    assert marks(feeds.take(2)) == [0, 1]
    assert marks(feeds.spread(2)) == [1, 3]
    assert feeds.first()["x"].shape == (1, 3)


class Refilled:
    """Yields one buffer again and again, each time with other values; also a calibration reader."""

    def __init__(self):
        self.buffer, self.left = np.zeros((1, 3), np.float32), iter(range(8))

    def __call__(self):
        for k in range(8):
            self.buffer[:] = k
            yield {"x": self.buffer}

    def get_next(self):
        for k in self.left:
            self.buffer[:] = k
            return {"x": self.buffer}
        return None


@pytest.mark.parametrize("cache_mb", [0, 128])
def test_a_function_may_fill_one_buffer(cache_mb):
    feeds = resolve(Refilled().__call__, MODEL, DataOptions(cache_mb=cache_mb))
    assert marks(feeds) == marks(list(feeds)) == list(range(8))


def through(kind):
    return ({"x": kind(feed["x"])} for feed in Refilled()())


@pytest.mark.parametrize(
    "data",
    [Refilled(), Refilled()(), through(memoryview), through(lambda x: (x[0],))],
    ids=["reader", "generator", "views", "tuples"],
)
def test_what_is_read_once_may_fill_one_buffer(data):
    assert marks(resolve(data, MODEL)) == list(range(8))


@pytest.mark.parametrize("n", [4, 5, 7, 8, 10, 48, 128])
def test_split_is_disjoint_complete_and_interleaved(n):
    feeds = resolve(rows(n), MODEL)
    fit, check = feeds.split()
    assert sorted(marks(fit) + marks(check)) == list(range(n))
    assert len(check) == max(1, round(n / 4))
    assert not fit.shared and not check.shared
    if n >= 8:  # from all over the data, not one end
        assert min(marks(check)) < n / 2 < max(marks(check))
    again = feeds.split()
    assert (marks(again[0]), marks(again[1])) == (marks(fit), marks(check))
    assert marks(feeds.split(interleaved=False)[1]) == list(range(n - len(check), n))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_feeds_are_shared_and_say_so(n):
    fit, check = resolve(rows(n), MODEL).split()
    assert marks(fit) == marks(check) == list(range(n))
    assert fit.shared and check.shared


def test_generator_functions_are_called_for_every_pass_beyond_the_cache():
    calls = []

    def generate():
        calls.append(1)
        yield from rows(6)

    cached = resolve(generate, MODEL)
    assert len(cached) == 6 and marks(cached) == marks(cached) == list(range(6))
    assert len(calls) == 1
    calls.clear()
    bare = resolve(generate, MODEL, DataOptions(cache_mb=0))
    assert len(bare) == 6 and marks(bare.split()[1]) == marks(bare.split()[1])
    assert len(calls) == 3


def test_partly_cached_streams_give_the_same_feeds():
    big = [{"x": np.full((1 << 16, 3), i, np.float32)} for i in range(5)]  # 768 KB each, one fits
    feeds = resolve(lambda: iter(big), MODEL, DataOptions(cache_mb=1))
    assert marks(feeds) == marks(feeds) == list(range(5))
    assert len(feeds._store.cached) == 1


@pytest.mark.parametrize("size", [1, 1 << 17])  # beyond the second, not all entries are looked at
def test_data_that_differ_when_they_are_read_again_are_refused(size):
    drawn = itertools.count()

    def generate():
        yield from ({"x": np.full((size, 3), next(drawn) if k == 2 else k, np.float32)} for k in range(4))

    with pytest.raises(DataError, match=r"other values for feed 2 when it was read again.*seed"):
        list(resolve(generate, MODEL, DataOptions(cache_mb=0)))
    assert size > 1 or len(list(resolve(generate, MODEL))) == 4, "what is kept is not read again"


def test_a_checksum_takes_every_type():
    texts, halves = np.array(["a", "b"], object), np.ones((2, 3), ml_dtypes.bfloat16)
    values = [texts, texts[::-1], halves, halves * 2, np.ones((3, 2)).T, [np.zeros(1), np.ones(2)], None, np.bool_(1)]
    assert len({checksum({"x": value}) for value in values}) == len(values)
    assert checksum({"x": halves}) == checksum({"x": halves.copy()})


def test_endless_and_long_streams_are_cut():
    endless = resolve(lambda: ({"x": np.full((1, 3), i, np.float32)} for i in itertools.count()), MODEL)
    assert len(endless) == DEFAULT_SAMPLES
    assert any("--samples" in n for n in endless.notes)
    assert len(resolve(lambda: iter(rows(9)), MODEL, DataOptions(samples=4))) == 4
    assert marks(resolve(rows(8), MODEL, DataOptions(samples=2))) == [2, 6]


@pytest.mark.parametrize("most", [99_999_999_999, 10**30])
def test_more_samples_may_be_asked_for_than_memory_holds(most):
    feeds = resolve(lambda: ({"x": np.full((1, 3), k, np.float32)} for k in range(5)), MODEL, DataOptions(samples=most))
    assert len(feeds) == len(list(feeds)) == 5
    with pytest.raises(OptionError, match=f"samples is {most}; of random feeds there are 100000 at most"):
        resolve(None, MODEL, DataOptions(samples=most))


def test_one_shot_iterators_are_kept():
    feeds = resolve(iter(rows(4)), MODEL)
    assert marks(feeds) == marks(feeds) == [0, 1, 2, 3]
    big = ({"x": np.zeros((1 << 20, 3), np.float32)} for _ in range(9))
    with pytest.raises(DataError, match="read only once"):
        resolve(big, MODEL, DataOptions(cache_mb=20))


class Reader:
    def __init__(self, n):
        self.n, self.k, self.rewinds = n, 0, 0

    def get_next(self):
        self.k += 1
        return None if self.k > self.n else {"x": np.full((1, 3), self.k - 1, np.float32)}


class Rewindable(Reader):
    def rewind(self):
        self.k, self.rewinds = 0, self.rewinds + 1


@pytest.mark.parametrize("kind", [Reader, Rewindable])
def test_calibration_readers(kind):
    reader = kind(5)
    feeds = resolve(reader, MODEL, DataOptions(cache_mb=1 if kind is Reader else 0))
    assert len(feeds) == 5
    assert marks(feeds) == marks(feeds) == list(range(5))
    assert (reader.rewinds == 3) == (kind is Rewindable)


def test_feeds_pass_through_resolve():
    feeds = resolve(rows(2), MODEL)
    assert resolve(feeds, MODEL) is feeds
    assert isinstance(feeds, Feeds)


def test_other_name_of_the_only_input_is_noted_once():
    feeds = resolve(rows(3, "image"), MODEL)
    assert all(list(f) == ["x"] for f in feeds)
    assert feeds.notes == ['feeds call the input "image", the model calls it "x": taken as the same']
    assert rename_feeds({"image": np.zeros((1, 3), np.float32)}, Session(MODEL).inputs).keys() == {"x"}


@pytest.mark.parametrize("value", [np.zeros((1, 4), np.float32), np.zeros(3, np.float32), np.zeros((1, 3), np.int64)])
def test_other_name_needs_the_same_rank_dimensions_and_kind(value):
    with pytest.raises(DataError, match=r"feed 0 lacks input 'x': it has 'image'"):
        resolve([{"image": value}], MODEL).first()


def test_safe_conversions_are_done_and_noted_once():
    feeds = resolve([{"x": np.ones((1, 3)), "k": np.array([2], np.int32)}] * 3, TWO)
    assert {n: v.dtype for n, v in feeds.first().items()} == {"x": np.float32, "k": np.int64}
    assert len(list(feeds)) == 3
    assert feeds.notes == [
        "input 'x': float64 converted to float32",
        "input 'k': int32 converted to int64",
    ]


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "feed 0 lacks input 'k'.*x: float32.*k: int64"),
        ({"x": np.zeros((1, 3), "f4"), "k": np.zeros(1, "i8"), "q": np.zeros(1)}, "feed 0 names 'q'"),
        ({"x": np.zeros((1, 3), "i8"), "k": np.zeros(1, "i8")}, "input 'x': type int64.*takes float32"),
        ({"x": np.zeros((1, 3), "f4"), "k": np.zeros(1)}, "input 'k': type float64.*takes int64"),
        ({"x": np.full((1, 3), 1e39), "k": np.zeros(1, "i8")}, "input 'x': type float64"),
        ({"x": np.zeros((1, 4), "f4"), "k": np.zeros(1, "i8")}, r"input 'x': shape \[1, 4\] does not fit.*\[N,3\]"),
        ({"x": np.zeros(3, "f4"), "k": np.zeros(1, "i8")}, "batch axis missing"),
        ({"x": np.array([[0, np.nan, 0]], "f4"), "k": np.zeros(1, "i8")}, "feed 0, input 'x' contains NaN"),
        ({"x": np.array([[0, np.inf, 0]], "f4"), "k": np.zeros(1, "i8")}, "feed 0, input 'x' contains an infinite"),
        ({"x": np.zeros((0, 3), "f4"), "k": np.zeros(0, "i8")}, "feed 0, input 'x' is empty"),
        ([np.zeros((1, 3), "f4")], "feed 0 is a list; expected a dict"),
    ],
)
def test_bad_feeds_are_refused_with_place_and_expectation(feed, says):
    with pytest.raises(DataError, match=says):
        resolve([feed], TWO).first()


def test_the_index_of_the_bad_feed_is_told():
    bad = rows(4)
    bad[2]["x"] = np.full((1, 3), np.nan, np.float32)
    with pytest.raises(DataError, match="feed 2, input 'x' contains NaN"):
        list(resolve(bad, MODEL))


def test_batches_beyond_the_fixed_one_name_both():
    with pytest.raises(DataError, match="a batch of 8 where the model's batch is fixed at 1"):
        resolve([{"x": np.zeros((8, 3), np.float32)}], FIXED).first()


@pytest.mark.parametrize("empty", [[], lambda: iter(()), iter(())])
def test_empty_data(empty):
    with pytest.raises(DataError, match="empty"):
        len(resolve(empty, MODEL))


def test_a_generator_that_fails_tells_where():
    def generate():
        yield from rows(2)
        raise RuntimeError("disk on fire")

    with pytest.raises(DataError, match="RuntimeError at feed 2: disk on fire"):
        len(resolve(generate, MODEL))


def test_impossible_options():
    with pytest.raises(OptionError, match="samples"):
        DataOptions(samples=0)
    with pytest.raises(OptionError, match="layout"):
        DataOptions(image_layout="chw")
    with pytest.raises(OptionError, match="--input-shape names 'z'"):
        resolve("random", MODEL, DataOptions(input_shapes={"z": (1,)}))


def test_spaced_keeps_order_and_count():
    assert spaced(range(10), 20) == list(range(10))
    assert spaced(range(10), 5) == [1, 3, 5, 7, 9]
    assert len(set(spaced(range(1000), 512))) == 512
