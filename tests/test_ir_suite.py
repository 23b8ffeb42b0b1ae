"""Load -> save changes nothing that a runtime can see, on every case of ONNX's own node suite."""

import suite

from onnxslim_opt import ir


def _outcome(case):
    """None when the round trip is faithful (or ONNX Runtime cannot run the case at all), else what went wrong."""
    proto = suite.model(case)
    data, names = proto.SerializeToString(), [i.name for i in proto.graph.input]
    try:
        before = suite.session(data)
        expected = before.run(None, suite.feeds(case, names))
    except Exception:
        ir.to_bytes(ir.from_bytes(data))  # must still load and save
        return None
    model = ir.from_bytes(data)
    ir.verify.check(model)
    for step in (lambda: None, lambda: ir.shapes.refresh(model)):
        step()
        after = suite.session(ir.to_bytes(model.copy()))
        if suite.interface(before) != suite.interface(after):
            return "interface"
        if not suite.same(expected, after.run(None, suite.feeds(case, names))):
            again = before.run(None, suite.feeds(case, names))
            return "values" if suite.same(expected, again) else None
    return "ran"


def test_round_trip_of_every_node_case():
    found = {case.name: _outcome(case) for case in suite.cases()}
    bad = {name: what for name, what in found.items() if what not in (None, "ran")}
    assert not bad
    assert sum(what == "ran" for what in found.values()) >= 1500
