"""The recorder changes nothing: outputs, gradients, random numbers, hooks, memory, copies."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab.probe.recorder import Recorder
from gnnstab.trace import TraceWriter
from models.convnets import CASES, Case, Stack, graph, scalar


def run(model: nn.Module, args: tuple[Any, ...], recorder: Recorder | None, steps: int = 3) -> list[Tensor]:
    """Train and return everything that could have changed."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(*args)
        scalar(output).backward()
        kept += [out.detach().clone() for out in (output.values() if isinstance(output, dict) else [output])]
        kept += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if recorder is not None:
            recorder.end_step(moves=True)
        optimizer.step()
        if recorder is not None:
            recorder.after_update()
    return [*kept, *(p.detach().clone() for p in model.parameters()), torch.get_rng_state(), torch.rand(3)]


def hooks_of(model: nn.Module) -> list[Any]:
    """Every hook table entry and instance override of a model."""
    found: list[Any] = []
    for module in model.modules():
        for name, value in vars(module).items():
            if ("hooks" in name and value) or name == "message":
                found.append((name, value))
    return found


def column(writer: TraceWriter, layer: str, site: str, field: str = "count") -> Any:
    """One column of the only series of a site."""
    (rows,) = writer.read().sites(layer, site).values()
    return rows[field]


@pytest.mark.parametrize("full_every", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bit_identical(case: Case, full_every: int) -> None:
    model, args = case.make()
    expected = run(model, args, None)
    model, args = case.make()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=full_every) as recorder:
        found = run(model, args, recorder)
        assert recorder.events == []
        coverage = recorder.coverage
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert coverage.layers_expected == coverage.layers_observed > 0
    assert [blind for blind in coverage.blind if blind.site == "score"] == []
    assert hooks_of(model) == []


def test_bit_identical_in_eval_without_gradients() -> None:
    model, args = CASES[0].make()
    model.eval()
    with torch.no_grad():
        expected = model(*args)
        with TraceWriter(None) as writer, Recorder(model, writer):
            assert torch.equal(model(*args), expected)


def test_hooks_are_gone_after_an_exception() -> None:
    model, args = CASES[0].make()

    def failing() -> None:
        with TraceWriter(None) as writer, Recorder(model, writer):
            model(*args)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert hooks_of(model) == []


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_recorders_on_one_model(first_out: int) -> None:
    model, args = CASES[0].make()
    with TraceWriter(None) as one, TraceWriter(None) as other:
        recorders = [Recorder(model, one).attach(), Recorder(model, other).attach()]
        model(*args)
        recorders[first_out].detach()
        model(*args)
        recorders[1 - first_out].detach()
        assert hooks_of(model) == []
        counts = [int(column(writer, "convs.0", "score").sum()) for writer in (one, other)]
    assert sorted(counts) == [80, 160]


def test_a_second_monitor_after_the_first() -> None:
    model, args = CASES[0].make()
    for _ in range(2):
        with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
            model(*args)
            assert recorder.coverage.layers_observed == 2


def test_an_instance_override_of_message_is_kept() -> None:
    model, args = CASES[0].make()
    conv = model.convs[0]
    conv.message = own = conv.message
    with TraceWriter(None) as writer, Recorder(model, writer):
        model(*args)
    assert conv.__dict__["message"] is own


def test_copies_and_pickles_of_the_model_are_clean() -> None:
    model, args = CASES[0].make()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        expected = model(*args)
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        recorder.end_step()
        assert torch.equal(twin(*args), expected)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(loaded(*args), expected)
        assert not recorder.state.open, "a copy of the model must not report as the model"


def test_no_activation_outlives_its_step() -> None:
    model, args = CASES[0].make()
    alive: list[weakref.ref[Tensor]] = []
    for conv in model.convs:
        conv.register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
        scalar(model(*args)).backward()
        gc.collect()
        assert [ref for ref in alive if ref() is not None] == [], "kept within the step"
        recorder.end_step()
        batch = weakref.ref(args[0])
        del args
        gc.collect()
        assert batch() is None, "the inputs of a forward must be released at the step's end"


def test_the_model_does_not_keep_the_recorder() -> None:
    model, args = CASES[0].make()
    with TraceWriter(None) as writer:
        recorder = Recorder(model, writer).attach()
        loss = scalar(model(*args))
        recorder.detach()
        gone = weakref.ref(recorder)
        del recorder
        gc.collect()
        assert gone() is None
        loss.backward()


def test_a_leaf_keeps_no_hook() -> None:
    model, (x, *rest) = CASES[0].make()
    x.requires_grad_()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        for _ in range(3):
            scalar(model(x, *rest)).backward()
            recorder.end_step()
            assert not x._backward_hooks
        assert list(column(writer, "convs.0", "grad_input")) == [x.numel()] * 3


SYNCHRONISING = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


def test_nothing_waits_for_the_device_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = CASES[2].make()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
        scalar(model(*args)).backward()
        recorder.end_step()
        with monkeypatch.context() as patch:
            for name in SYNCHRONISING:
                patch.setattr(Tensor, name, lambda self, *a, name=name, **k: pytest.fail(f"Tensor.{name} was called"))
            scalar(model(*args)).backward()
        assert recorder.events == []
        recorder.end_step()
        assert recorder.events == []


class Changing(TransformerConv):
    """A layer whose message reads a module global that changes while it is recorded."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return FACTOR * super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)


FACTOR = 1.0


def test_globals_of_a_subclass_stay_live(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, args = Stack(conv=Changing, root_weight=False, bias=False), graph()
    with torch.no_grad(), TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        before = model(*args)
        monkeypatch.setitem(globals(), "FACTOR", 0.0)
        assert before.abs().sum() > 0
        assert model(*args).abs().sum() == 0
        assert recorder.coverage.blind == ()
