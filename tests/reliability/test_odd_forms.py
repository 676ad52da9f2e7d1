"""Programs of an odd form that trained otherwise once, or that the tool could not look at."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GATv2Conv, HypergraphConv, TransformerConv
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.errors import UsageError
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()


def loss(output: Tensor, batch: object = None) -> Tensor:
    return (output - 1).square().mean()


def trained(model: nn.Module, steps: int = 5) -> gnnstab.Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss, schedule=2, on_finding="ignore") as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            optimizer.step()
            monitor.loss(value)
    return monitor.diagnose()


class PartOnMeta(Net):
    """A head that was never loaded, as of a pretrained model that is used in part; it stands first among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in [*self._modules.items()]:
            del self._modules[name]
            self._modules.setdefault("head", nn.Linear(3, 3, device="meta"))
            self._modules[name] = part
        self.register_buffer("table", torch.zeros(2, device="meta"))


@pytest.mark.filterwarnings("error")
def test_what_lies_on_meta_is_named_as_not_seen() -> None:
    model = PartOnMeta()
    for found in (trained(model), gnnstab.diagnose(model, batch=(X, EDGES), loss=loss)):
        codes = [f.code for f in found.findings]
        assert "GS902" not in codes and "GS604" not in codes
        assert {(b.layer, b.reason.split(",")[0]) for b in found.coverage.blind} == {
            ("head", "it lies on the meta device"),
            ("", "it lies on the meta device"),
        }
    assert trained(Net()).coverage.blind == ()


class Spectral(Net):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(8, dtype=torch.cfloat))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(torch.fft.ifft(torch.fft.fft(x) * self.filter).real, edge_index)


def test_complex_parameters_bring_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "GS902" not in [f.code for f in trained(Spectral()).findings]


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_a_diagnosis_that_fails_leaves_no_thread(where: str) -> None:
    class Failing(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            if where == "forward":
                raise ValueError("no")
            return super().forward(x, edge_index)

    def failing(output: Tensor, batch: object) -> Tensor:
        raise ValueError("no")

    before = threading.enumerate()
    with pytest.raises(UsageError) as caught:
        gnnstab.diagnose(Failing(), batch=(X, EDGES), loss=failing)
    assert threading.enumerate() == before, "also while the exception is kept"
    del caught


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message = TransformerConv(8, 8)
        self.update = GATv2Conv(8, 8, add_self_loops=False)
        self.forth = HypergraphConv(8, 8, use_attention=True)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.update(self.message(x, edge_index), edge_index)
        x = self.forth(x, edge_index, hyperedge_attr=torch.ones(int(edge_index[1].max()) + 1, 8))
        out: Tensor = self.attention(x, x, x)[0]
        return out


def test_copies_made_inside_have_the_attributes_of_the_model() -> None:
    model = Several()
    names = {name: sorted(vars(module)) for name, module in model.named_modules()}
    with gnnstab.Monitor(model, on_finding="ignore"):
        model(X, EDGES).sum().backward()
        twin = copy.deepcopy(model)
        (second,) = copy.deepcopy([twin])
    for one in (model, twin, second):
        assert {name: sorted(vars(module)) for name, module in one.named_modules()} == names
        torch.testing.assert_close(one(X, EDGES), model(X, EDGES))


class Contrary(nn.Linear):
    """Says nothing of itself to whoever asks past its forward."""

    def _refuses(self, *args: object) -> object:
        raise RuntimeError("asked")

    __eq__ = __bool__ = __len__ = __repr__ = _refuses  # type: ignore[assignment]
    __hash__ = nn.Module.__hash__


class WithContrary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.out = Contrary(8, 1)


def test_a_module_that_refuses_to_be_compared_counted_or_shown() -> None:
    model = WithContrary()
    found = trained(model, 20)
    assert "GS902" not in {f.code for f in found.findings}
    assert {f.code for f in found.findings} == {f.code for f in trained(Net(), 20).findings}
    gnnstab.diagnose(model, batch=(X, EDGES), loss=loss)


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Of a kind that can be entered once."""
    yield


class Single(Net):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        def segment(x: Tensor) -> Tensor:
            return torch.relu(self.first(x, edge_index))

        inner = checkpoint(segment, x, use_reentrant=False, context_fn=lambda: (once(), once()))
        out: Tensor = self.out(self.second(inner, edge_index))
        return out


def test_a_checkpoint_whose_contexts_can_be_entered_once() -> None:
    found = trained(Single(), 20)
    assert "GS902" not in {f.code for f in found.findings}


class Behind(Net):
    """With ``part`` behind the read-out."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.part(super().forward(x, edge_index))
        return out


PARTS = {
    "lazy": lambda: nn.LazyBatchNorm1d(),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.2), nn.BatchNorm1d(1))),
    "traced": lambda: torch.jit.trace(nn.Linear(1, 1), torch.ones(2, 1)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", PARTS)
def test_parts_without_shapes_yet_and_parts_that_take_no_hooks(kind: str, broken: bool) -> None:
    """At a rate at which nothing is learned, so that suspects are undone at the end; broken, the last step leaves NaN in the part."""

    def loop(run: Run) -> None:
        model = Behind(PARTS[kind]())
        optimizer = torch.optim.SGD([{"params": model.first.parameters()}], lr=1e-6)
        with run.watching(model, optimizer=optimizer, loss=loss) as monitor:
            for number in range(12):
                optimizer.zero_grad()
                value = loss(model(X, EDGES))
                if not number:
                    optimizer.add_param_group({"params": [p for n, p in model.named_parameters() if "first" not in n]})
                value.backward()
                optimizer.step()
                if monitor is not None:
                    monitor.loss(value)
            if broken:
                tensors = [*model.part.buffers(), *model.part.parameters()]
                next(t for t in tensors if t.is_floating_point()).data[0] = torch.nan
        run.keep(*model.parameters(), *model.buffers())

    found = unnoticed(loop, on_finding="ignore").monitor.diagnose()
    codes = {f.code for f in found.findings}
    assert "GS902" not in codes and ("GS502" in codes) == broken, found


class Energy(nn.Module):
    """One number for the whole graph, from attention of the model's own: neither a row for each node nor one for the graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ask, self.tell = nn.Linear(X.shape[1], 8), nn.Linear(X.shape[1], 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        score = (self.ask(x)[edge_index[1]] * self.tell(x)[edge_index[0]]).sum(1, keepdim=True)
        weight = softmax(score, edge_index[1], num_nodes=len(x))
        return (weight * self.tell(x)[edge_index[0]]).sum()


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_a_model_that_returns_one_number_is_measured(optimizer: type[torch.optim.Adam] | None) -> None:
    model = Energy()
    moved = optimizer and optimizer(model.parameters(), 1e-3)
    for diagnosis in (
        trained(Energy()),
        gnnstab.diagnose(model, batch=(X, EDGES), loss=lambda out, _: loss(out), optimizer=moved),
    ):
        assert not [f for f in diagnosis.findings if f.code == "GS902"]
        assert [layer.name for layer in diagnosis.layers if layer.attention] == ["Energy"]
