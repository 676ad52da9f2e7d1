"""Interventions on broken networks and their repaired twins: who is the root, by what share, and what is not established."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GraphNorm, MessagePassing, TransformerConv

import gnnstab
from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, Finding, Signals
from gnnstab.report import summary
from gnnstab.verification import undo
from gnnstab.verification.interventions import _inputs as inputs
from gnnstab.verification.interventions import _measuring as measuring
from gnnstab.verification.interventions import _table as table
from gnnstab.verification.interventions import _trying as trying
from gnnstab.verification.interventions._investigation import TRIED
from gnnstab.verification.interventions._trial import Case, Edit
from gnnstab.verification.interventions.deciding import CONTRIBUTES, ROOT
from models.stacks import Stack, random_batch


def drawn(model_of, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_of()


def scaled(model, factor, *parts):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                parameter.mul_(factor)
    return model


def cause_of(diagnosis, name):
    return next(cause for cause in diagnosis.causes if cause.cause == name)


def roots(diagnosis):
    return [cause.cause for cause in diagnosis.root_causes()]


class Distances(nn.Module):
    """Attention over points whose edges carry a distance in whatever unit it is given."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.first = TransformerConv(16, 16, edge_dim=2)
        self.second = TransformerConv(16, 16, edge_dim=2)

    def forward(self, x, edge_index, edge_attr):
        h = self.first(self.embed(x), edge_index, edge_attr).relu()
        return self.second(h, edge_index, edge_attr)


def points(unit):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        edges = random_batch(40, 8)["edge_index"]
        return {"x": torch.randn(40, 5), "edge_index": edges, "edge_attr": unit * torch.rand(edges.shape[1], 2)}


class Crowd(nn.Module):
    """Sums over everybody near, then attends."""

    class Sum(MessagePassing):
        def __init__(self, aggr):
            super().__init__(aggr=aggr)
            self.lin = nn.Linear(16, 16)

        def forward(self, x, edge_index):
            return self.propagate(edge_index, x=self.lin(x).relu())

        def message(self, x_j):
            return x_j

    def __init__(self, aggr="sum"):
        super().__init__()
        self.gather, self.attend = self.Sum(aggr), TransformerConv(16, 16)

    def forward(self, x, edge_index):
        return self.attend(6.0 * self.gather(x, edge_index), edge_index)


class Loud(nn.Module):
    """Attends to what an encoder gives, times a constant."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.embed, self.attend = factor, nn.Linear(16, 16), TransformerConv(16, 16)

    def forward(self, x, edge_index):
        return self.attend(self.embed(x) * self.factor, edge_index)


BROKEN = {
    "edge features in millimetres": (lambda: Distances(), lambda: points(900.0), "feature-scale", "edge_attr"),
    "node features far from zero": (
        lambda: Stack(3), lambda: {**random_batch(), "x": 30.0 * random_batch()["x"] + 20.0}, "feature-scale", "x",
    ),
    "query weights out of proportion": (
        lambda: scaled(Stack(3, heads=2, concat=False), 30.0, "lin_query.weight"), random_batch, "attention-explosion", "query",
    ),
    "a sum over many neighbours": (lambda: Crowd(), lambda: random_batch(80, 30), "sum-aggregation", "gather"),
    "small initial weights": (lambda: scaled(Stack(8), 0.3, "weight", "bias"), random_batch, "unsuitable-init", "gain"),
    "large initial weights": (lambda: scaled(Stack(8), 4.0, "weight", "bias"), random_batch, "unsuitable-init", "gain"),
    "a factor in the code": (lambda: Loud(30.0), random_batch, "unsuitable-init", "multiplies what embed returns by 30 (line "),
    "a deep stack without identity": (lambda: Stack(14), random_batch, "no-residual", "identity"),
}  # fmt: skip

REPAIRED = {
    "edge features in metres": (lambda: Distances(), lambda: points(0.9)),
    "node features near zero": (lambda: Stack(3), random_batch),
    "a mean over many neighbours": (lambda: Crowd("mean"), lambda: random_batch(80, 30)),
    "a factor that weights make good for": (lambda: scaled(Loud(30.0), 1 / 30, "embed"), random_batch),
    "initial weights in use": (lambda: Stack(8), random_batch),
    "a deep stack with identity": (lambda: Stack(14, residual=1.0, pre_norm=True), random_batch),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_suspect_whose_undoing_helps_is_the_root(name):
    make, batch, expected, place = BROKEN[name]
    diagnosis = gnnstab.diagnose(drawn(make), batch=batch())
    # That nodes have become alike, by depth or without it, is seen itself (GS704), and no short look measures it.
    alike = {"oversmoothing"} if name == "a deep stack without identity" else {"indistinguishable-nodes"}
    assert set(roots(diagnosis)) - alike == {expected}
    cause = cause_of(diagnosis, expected)
    assert cause.how == "undone"
    assert ROOT <= cause.share <= 1
    assert place in cause.reason
    assert f"{100 * cause.share:.0f} % of the way back" in cause.reason


@pytest.mark.parametrize("name", REPAIRED)
def test_the_repaired_twin_is_quiet(name):
    make, batch = REPAIRED[name]
    diagnosis = gnnstab.diagnose(drawn(make), batch=batch())
    assert not diagnosis.at_least("warning")
    assert "interventions" not in diagnosis.context


def test_what_was_tried_stands_in_the_json():
    make, batch, *_ = BROKEN["edge features in millimetres"]
    data = gnnstab.diagnose(drawn(make), batch=batch()).to_dict()
    tried = data["context"]["interventions"]
    assert {entry["intervention"] for entry in tried} <= {"standardise-input", "rescale-queries"}
    first = tried[0]
    assert first["cause"] == "feature-scale"
    assert first["place"] == "edge_attr"
    assert first["before"] < 0.35 < first["after"]
    found = {cause["cause"]: cause for cause in data["causes"]}
    assert found["feature-scale"]["how"] == "undone"
    assert found["no-dropout"]["how"] == "" and found["no-dropout"]["share"] is None


def test_the_change_names_the_tensor():
    make, batch, *_ = BROKEN["edge features in millimetres"]
    fix = cause_of(gnnstab.diagnose(drawn(make), batch=batch()), "feature-scale").fixes[0]
    assert fix.fix == "input-standardisation"
    assert "edge_attr = (edge_attr - mean) / std" in fix.change


def test_the_symptom_follows_from_the_root_and_blames_nothing_else():
    make, batch, *_ = BROKEN["edge features in millimetres"]
    diagnosis = gnnstab.diagnose(drawn(make), batch=batch())
    for finding in diagnosis.at_least("warning"):
        assert "query and key weights saturate" not in finding.message
        assert "Standardising edge_attr" in finding.message
    assert cause_of(diagnosis, "attention-explosion").status == "contributing"


class PostNorm(nn.Module):
    """x ← norm(x + conv(x) + place): every gradient passes through every normalisation. ``pre`` puts them into the branches."""

    def __init__(self, pre, depth=12):
        super().__init__()
        self.pre = pre
        self.convs = nn.ModuleList([TransformerConv(16, 16) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(depth)])
        self.register_buffer("place", 6.0 * torch.randn(64, 16))

    def forward(self, x, edge_index):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if self.pre:
                x = x + (conv(norm(x), edge_index) + self.place)
            else:
                x = norm(x + (conv(x, edge_index) + self.place))
        return x


def test_normalisations_after_the_sum_are_found_by_their_gradient():
    broken = gnnstab.diagnose(drawn(lambda: PostNorm(pre=False)), batch=random_batch())
    assert roots(broken) == ["normalization-misuse"]
    cause = cause_of(broken, "normalization-misuse")
    assert "after the residual sum" in cause.reason
    assert [fix.fix for fix in cause.fixes] == ["pre-norm-residual"]
    assert not gnnstab.diagnose(drawn(lambda: PostNorm(pre=True)), batch=random_batch()).root_causes()


def test_a_monitor_undoes_the_suspects_at_its_end_and_leaves_the_run_alone():
    def run(watched):
        model, batch = drawn(Distances), points(900.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        monitor = gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") if watched else nullcontext()
        with monitor:
            for _ in range(5):
                optimizer.zero_grad()
                model(**batch).square().mean().backward()
                optimizer.step()
            during = monitor.diagnose() if watched else None
        return model, monitor, during

    plain, *_ = run(False)
    model, monitor, during = run(True)
    diagnosis = monitor.diagnose()
    assert "interventions" not in during.context
    assert roots(diagnosis) == ["feature-scale"]
    assert cause_of(diagnosis, "feature-scale").how == "undone"
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def test_a_trace_says_what_the_monitor_said_at_its_end(tmp_path):
    model, batch = drawn(Distances), points(900.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, trace=tmp_path / "run.gnnstab", on_finding="ignore") as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            model(**batch).square().mean().backward()
            optimizer.step()
    said, read = monitor.diagnose(), gnnstab.diagnose(tmp_path / "run.gnnstab")
    assert roots(read) == roots(said) == ["feature-scale"]
    assert [(c.cause, c.status, c.how, c.share, c.reason) for c in read.causes] == [
        (c.cause, c.status, c.how, c.share, c.reason) for c in said.causes
    ]
    assert read.findings == said.findings
    fewer = gnnstab.diagnose(tmp_path / "run.gnnstab", ignore=[f.code for f in read.findings])
    assert not fewer.root_causes()


class Stubborn(nn.Module):
    """Attention that is sharp through a product with a whole tensor in the forward, which no suspect is."""

    def __init__(self):
        super().__init__()
        self.conv = TransformerConv(16, 16)

    def forward(self, x, edge_index):
        return self.conv(torch.full_like(x, 60.0) * x, edge_index)


def test_without_a_share_the_cause_is_not_established():
    diagnosis = gnnstab.diagnose(drawn(Stubborn), batch=random_batch())
    assert diagnosis.at_least("warning")
    assert roots(diagnosis) == []
    assert "cause not established" in summary.verdict(diagnosis)[1]
    (finding,) = (f for f in diagnosis.findings if f.severity != "info")
    assert "Cause not established" in finding.message
    assert finding.confidence == "medium"
    assert cause_of(diagnosis, "attention-explosion").status in ("absent", "present")


def teacher(model, batch):
    """A target that needs sharp attention: every node is told the first feature of its neighbour with the largest key."""
    source, target = batch["edge_index"]
    best = torch.full((len(batch["x"]),), -math.inf).scatter_reduce_(0, target, batch["x"][source, 0], "amax")
    return torch.where(best.isfinite(), best, 0.0)


def test_sharp_attention_that_the_loss_needs_is_information():
    model, batch = drawn(lambda: TransformerConv(16, 16)), random_batch(48, 16)
    wanted = teacher(model, batch)

    def loss(output, _):
        return (output[:, 0] - wanted).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(model(**batch), batch).backward()
        optimizer.step()
    diagnosis = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    sharp = [f for f in diagnosis.findings if f.signal.startswith("attention.")]
    assert sharp
    for finding in sharp:
        assert finding.severity == "info"
        assert "earned" in finding.message
    assert "attention-explosion" not in roots(diagnosis)


def test_model_gradients_and_generators_stay_as_they_were():
    make, batch, *_ = BROKEN["a deep stack without identity"]
    model = drawn(make)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, homes = torch.get_rng_state(), vars(measuring)["softmax"]
    diagnosis = gnnstab.diagnose(model.train(), batch=batch())
    undo(diagnosis, model, batch=batch())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(measuring)["softmax"] is homes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_name_softmax_is_given_back_after_a_forward_that_fails():
    import torch_geometric.nn.conv.transformer_conv as home

    model, before = Stack(2).eval(), home.softmax
    signals = gnnstab.diagnose(model, batch=random_batch())
    with pytest.raises(RuntimeError):
        measuring.look(
            model, {**random_batch(), "x": torch.rand(64, 3)}, Edit(), loss=None, precision="fp32", layers=signals.layers,
            signals=frozenset(), backward=False,
        )  # fmt: skip
    assert home.softmax is before


def test_the_short_look_sees_what_the_full_one_sees():
    model, batch = (
        drawn(lambda: scaled(Stack(6, heads=2, concat=False), 8.0, "lin_query.weight")).eval(),
        random_batch(),
    )
    full = gnnstab.diagnose(model, batch=batch)
    wanted = frozenset({"score.max_abs", "output.max_abs", "channels.dead_share", "smoothness.relative"})
    short = measuring.look(
        model, batch, Edit(), loss=None, precision="fp32", layers=full.layers, signals=wanted, backward=True
    ).signals
    reference = Signals("model", full.layers, full.signals)
    for name in (*wanted, "attention.entropy", "attention.one_hot_share"):
        for signal in short.find(name):
            assert signal.value == pytest.approx(reference.value(name, layer=signal.layer), rel=1e-4, abs=1e-6), name
    assert short.value("gradient.ratio") == pytest.approx(reference.value("gradient.ratio"), rel=1e-3)
    assert len(short.find("attention.entropy")) == 6


def test_ids_counts_and_flags_are_no_suspects():
    nodes = 30
    ids = torch.arange(nodes).float() * 1000
    x = torch.stack([ids, (ids % 7 == 0).float(), torch.randn(nodes), 50 * torch.randn(nodes)], 1)
    assert inputs.deviating(x, whole=False).tolist() == [3]
    assert inputs.deviating(x, whole=True).tolist() == [0, 3], "a weight multiplies the ids"
    changed = inputs.standardised(x, torch.tensor([3]))
    assert torch.equal(changed[:, :3], x[:, :3])
    assert changed[:, 3].std(unbiased=False) == pytest.approx(1, rel=1e-4)
    assert inputs.deviating(torch.randint(0, 9, (4, 2)), whole=True) is None
    assert inputs.deviating(torch.zeros(0, 3), whole=True) is None
    assert inputs.deviating(torch.full((5, 2), math.nan), whole=True) is None


@pytest.mark.parametrize("kind", ["data", "hetero", "dict", "dict of dicts", "tuple"])
def test_a_tensor_is_replaced_under_its_name(kind):
    x, other = torch.randn(4, 2), torch.randn(4, 2)
    hetero = HeteroData()
    hetero["user"].x, hetero["item"].x = x, other
    batch, name = {
        "data": (Data(x=x, edge_attr=other), "x"),
        "hetero": (hetero, "user.x"),
        "dict": ({"x": x, "edge_index": other}, "x"),
        "dict of dicts": ({"x_dict": {"user": x, "item": other}}, "x_dict.user"),
        "tuple": ((x, other), "x"),
    }[kind]
    model, new = Stack(1), torch.zeros(4, 2)
    assert inputs.tensors_of(batch, model)[name] is x
    changed = inputs.tensors_of(inputs.with_tensor(batch, x, new), model)
    assert changed[name] is new
    assert sum(value is other for value in changed.values()) == 1
    assert inputs.tensors_of(batch, model)[name] is x


class Normed(nn.Module):
    """A GraphNorm between two layers that is not told which node belongs to which graph."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = TransformerConv(16, 16), GraphNorm(16), TransformerConv(16, 16)

    def forward(self, x, edge_index, batch):
        return self.second(self.norm(self.first(x, edge_index)), edge_index)


def test_a_norm_gets_the_batch_that_it_was_called_without():
    from gnnstab.verification.interventions._suspects import norms_told_of_graphs
    from gnnstab.verification.interventions._trial import Case

    model = Normed().eval()
    given = {**random_batch(), "batch": torch.arange(64) // 16}
    signals = Signals("model", (), context={"norm_without_batch": ("norm",)})
    case = Case(model, given, None, "fp32", signals, (), ())
    (trial,) = norms_told_of_graphs(case, measuring.Look(signals, math.nan, {}))
    seen = []
    with trial.edit.model(model) as changed:
        handle = model.norm.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
        changed(**given)
        handle.remove()
    assert torch.equal(seen[0]["batch"], given["batch"])
    assert not model.norm._forward_pre_hooks


def test_a_clamp_is_taken_off_in_code_and_in_modules():
    x = torch.tensor([[-9.0, 0.5, 9.0]])

    def clamped(value):
        return (
            value.clamp(-1, 1),
            torch.clip(value, max=1.0),
            nn.Hardtanh()(value),
            nn.ReLU6()(value),
            value.clamp(min=0.1),
        )

    with measuring._Unclamped():
        free = clamped(x)
    assert all(torch.equal(free[i], x) for i in (0, 1, 2))
    assert free[3].tolist() == [[0.0, 0.5, 9.0]]
    assert free[4].tolist() == clamped(x)[4].tolist()


@pytest.mark.parametrize("broken", ["refuses other scales", "cannot be copied"])
def test_a_model_that_cannot_be_tried_keeps_the_diagnosis_of_the_rules(broken):
    class Odd(Stubborn):
        refuses = False

        def forward(self, x, edge_index):
            if Odd.refuses:
                raise ValueError("not again")
            return super().forward(x, edge_index)

    model = drawn(Odd)
    diagnosis = gnnstab.diagnose(model, batch=random_batch())
    Odd.refuses = broken == "refuses other scales"
    context = pytest.MonkeyPatch.context() if broken == "cannot be copied" else nullcontext()
    with context as patch:
        if patch is not None:
            patch.setattr(
                Odd, "__deepcopy__", lambda self, memo: (_ for _ in ()).throw(RuntimeError("no")), raising=False
            )
        again = undo(diagnosis, model, batch=random_batch())
    assert again == diagnosis


def test_the_table_says_which_causes_it_can_undo():
    assert len(set(table.INTERVENTIONS)) == len(table.INTERVENTIONS)
    assert {expected for *_, expected, _ in BROKEN.values()} <= TRIED <= {*FIVE_CAUSES, *FURTHER_CAUSES}
    assert 0 < CONTRIBUTES < ROOT < 1


@pytest.mark.parametrize(
    ("rule", "name", "message", "trained", "driven"),
    [
        ("GS601", "update.ratio", "too high.", True, True),
        ("GS406", "loss", "the loss starts at 4e8.", True, True),
        ("GS406", "place.rms", "the targets `y` have RMS 2e4.", True, True),
        ("GS406", "place.rms", "the input `x` has RMS 2e4.", True, False),
        ("GS601", "update.ratio", "too high.", False, False),
    ],
)
def test_what_drives_the_weights_in_training(rule, name, message, trained, driven):
    cause = {"GS601": "learning-rate", "GS406": "feature-scale"}[rule]
    finding = Finding(rule, "", cause, "warning", "high", None, None, None, name, 1.0, 0.1, "", message)
    signals = Signals("trace", (), context={"trained": trained})
    case = Case(nn.Identity(), None, None, "fp32", signals, (finding,), ())
    assert trying._rate(case) is (finding if driven else None)
