"""Arrays kept in memory that was taken for all of them at once."""

import numpy as np
from onnxslim_opt.runtime import loading
from onnxslim_opt.runtime.room import Room


def test_what_is_kept_lies_side_by_side_and_is_a_copy():
    room, given = Room(5), [np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.ones((3, 3))]
    kept = [room.keep(a) for a in given]
    for a, b in zip(given, kept):
        np.testing.assert_array_equal(a, b)
    assert kept[2].base is kept[0].base
    assert kept[0].ctypes.data + kept[0].nbytes == kept[2].ctypes.data
    given[0][:] = 7
    assert kept[0][0, 0] == 0.0


def test_what_does_not_fit_any_more_gets_memory_of_its_own():
    room = Room(4)
    first, second = room.keep(np.arange(3)), room.keep(np.arange(5, 8))
    np.testing.assert_array_equal(first, [0, 1, 2])
    np.testing.assert_array_equal(second, [5, 6, 7])
    assert not np.shares_memory(first, second)


def test_memory_is_returned_each_time_that_a_loop_has_added_enough(monkeypatch):
    levels, trims = iter([100, 110, 160, 105, 154, 90, 140, 95]), []
    monkeypatch.setattr(loading, "RISE", 49)
    monkeypatch.setattr(loading, "_resident", lambda: next(levels))
    monkeypatch.setattr(loading, "_trim", lambda: trims.append(True))
    tide, seen = loading.Tide(), []
    for _ in range(5):  # 110: little; 160: returned, down to 105; 154: not 49 more; 90: lower; 140: returned
        tide.turn()
        seen.append(len(trims))
    assert seen == [0, 1, 1, 1, 2]
