"""The demonstration: a small swarm network saturates and overflows in half precision, is diagnosed, fixed and proven."""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, TransformerConv

from gnnstab.diagnosis import diagnose
from gnnstab.monitor import Monitor
from gnnstab.randomness import keeps_random_state
from gnnstab.records import SIGNALS, Diagnosis, Finding, FixAdvice
from gnnstab.verification import prove

AGENTS, GRAPHS, MOST_STEPS = 7, 8, 60
LEARNING_RATE = 0.07
SEEDS = (3, 2, 1, 7, 6)
"""Tried in order until a run blows up; on most machines the first one does."""

SEEDS_OF_PROOF, STEPS_OF_PROOF, RATE_OF_PROOF = 3, 40, 0.02
"""Fewer than `gnnstab verify` takes, so that the demonstration stays short; a rate at which the network without a fix
saturates, but does not die as at the rate above, which no change of the network survives."""


class SumEmbedding(MessagePassing):  # type: ignore[misc]  # torch_geometric ships no types
    """Embeds each neighbour and adds the messages up, un-normalised: the seed of the trouble."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 16))

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> Tensor:
        """(N, 6), (2, E), (E, 1) → (N, 16)."""
        return self.propagate(edge_index, x=x, e=e)  # type: ignore[no-any-return]

    def message(self, x_j: Tensor, e: Tensor) -> Tensor:
        """(E, 6), (E, 1) → (E, 16)."""
        return self.lin(torch.cat([x_j, e], dim=-1))  # type: ignore[no-any-return]


class Swarm(nn.Module):
    """Sum embedding, three TransformerConvs, a velocity for every entity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = SumEmbedding()
        self.convs = nn.ModuleList(TransformerConv(16, 16, heads=3, concat=False, edge_dim=1) for _ in range(3))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        """(N, 6), (2, E), (E, 1) → (N, 2)."""
        x = self.embed(x, edge_index, edge_attr)
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr).relu()
        out: Tensor = self.head(x)
        return out


@dataclass(frozen=True)
class Outcome:
    """What the demonstration leaves behind."""

    steps: int
    """Updates until the loss was no longer finite."""

    findings: tuple[Finding, ...]
    """Raised live, in the order they came."""

    trace: Path
    run: Diagnosis
    """Of the recorded run."""

    proof: Diagnosis
    """Of the network as it was at the last warning before it died, with every fix judged."""


def swarm_graphs(seed: int = 0, agents: int = AGENTS) -> Data:
    """Agents, goals and obstacles in the plane; the target is to step away from the nearest neighbour."""
    generator = torch.Generator().manual_seed(seed)
    n = 2 * agents + 3
    place = torch.rand(GRAPHS, n, 2, generator=generator) * 1.2
    distance = torch.cdist(place, place)
    graph, source, target = ((distance > 0) & (distance < 1)).nonzero(as_tuple=True)
    nearest = (distance + 9 * torch.eye(n)).argmin(-1, keepdim=True).expand(-1, -1, 2)
    away = place - place.gather(1, nearest)
    velocity, goal = torch.randn(2, GRAPHS, n, 2, generator=generator) * 0.3
    return Data(
        x=torch.cat([place, velocity, goal], dim=-1).flatten(0, 1),
        edge_index=torch.stack([graph * n + source, graph * n + target]),
        edge_attr=distance[graph, source, target].unsqueeze(-1),
        y=3 * (away / away.norm(dim=-1, keepdim=True)).flatten(0, 1),
    )


def loss(output: Tensor, batch: Data) -> Tensor:
    """Mean squared error of the velocities."""
    error: Tensor = output.float() - batch.y
    return error.square().mean()


@keeps_random_state
def run(folder: Path, say: Callable[[str], None]) -> Outcome:
    """Train until it blows up under the monitor, diagnose, and prove the fixes; ``say`` is told what happens."""
    batch = swarm_graphs()
    for seed in SEEDS:
        trace = folder / f"demo-{seed}.gnnstab"
        warned, steps, findings = _train(seed, batch, trace, say)
        if steps < MOST_STEPS:
            break
        say(f"seed {seed} stayed finite for {steps} updates; trying the next one")
    recorded = diagnose(trace)
    say("judging every fix on copies of the network, with the same graphs and loss")
    judged = diagnose(warned, batch=batch, loss=loss)
    proof = prove(judged, warned, batch=batch, loss=loss, seeds=SEEDS_OF_PROOF, steps=STEPS_OF_PROOF, lr=RATE_OF_PROOF)
    return Outcome(steps, findings, trace, recorded, proof)


def _train(seed: int, batch: Data, trace: Path, say: Callable[[str], None]) -> tuple[Swarm, int, tuple[Finding, ...]]:
    """One run: the network as it was at the last warning before it died, the updates made, the live findings."""
    findings: list[Finding] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Swarm()
    warned = copy.deepcopy(model)

    def notice(finding: Finding) -> None:
        if finding.code != "GS502":  # With that it has died.
            warned.load_state_dict(model.state_dict())
        findings.append(finding)

    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    say(f"training {AGENTS} agents in fp16 at learning rate {LEARNING_RATE}, under gnnstab.Monitor")
    steps = 0
    # The run is short, so everything is measured at every step.
    with Monitor(model, optimizer=optimizer, trace=trace, on_finding=notice, schedule="every step") as monitor:
        while steps < MOST_STEPS:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                output = model(batch.x, batch.edge_index, batch.edge_attr)
            value = loss(output, batch)
            monitor.loss(value)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            if not torch.isfinite(value):
                break
    return warned, steps, tuple(findings)


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """(label, text) of what happened and what was proven, in the order in which to read it."""
    lines = [("warned", "; ".join(_warned(outcome.findings)))]
    died = next((finding for finding in outcome.findings if finding.code == "GS502"), None)
    if died is not None:
        lines.append(("died", f"update {died.step}: first non-finite value, in {died.layer or 'the model'}"))
    causes = [cause.cause for cause in outcome.run.root_causes()]
    lines += [("causes", f"{', '.join(causes)} (of the run; the page shows the last warning)")] if causes else []
    judged = _judged(outcome)
    said = {
        verdict: [fix for fix in judged if fix.verdict == verdict]
        for verdict in dict.fromkeys(f.verdict for f in judged)
    }
    lines += [("confirmed", ", ".join(f"{fix.fix}{_moved(fix)}" for fix in said.pop("confirmed", ())) or "no fix")]
    others = [f"{', '.join(fix.fix for fix in fixes)} ({verdict})" for verdict, fixes in said.items()]
    return [*lines, ("others", "; ".join(others))] if others else lines


def change(outcome: Outcome) -> str:
    """The code of the best fix that was confirmed; empty where none was."""
    return next((fix.change for fix in _judged(outcome) if fix.verdict == "confirmed"), "")


def closing(outcome: Outcome) -> str:
    """What was proven, in one sentence."""
    judged = _judged(outcome)
    cured = sum(fix.verdict == "confirmed" for fix in judged)
    return f"{cured} of {len(judged)} fixes confirmed at rate {RATE_OF_PROOF} in fp32; the fp16 run was not repeated."


def verdicts(outcome: Outcome) -> str:
    """Every fix that was judged, with its numbers or what speaks against it."""
    lines = []
    for fix in _judged(outcome):
        said = fix.note if fix.verdict != "confirmed" and fix.note else _moved(fix).strip(" ()")
        head = f"  {fix.verdict:<13} {fix.fix:<22} "
        lines += textwrap.wrap(
            re.split(r" \(at |\. ", said)[0], 80, initial_indent=head, subsequent_indent=" " * len(head)
        )
    return "\n".join(lines)


def _warned(findings: Sequence[Finding]) -> Iterator[str]:
    """``update 2 (GS501)``: each rule once, up to the first value that is no number."""
    told: set[str] = {"GS502"}
    for finding in findings:
        if finding.code not in told:
            yield f"update {finding.step} ({finding.code} {finding.name})"
            told.add(finding.code)


def _judged(outcome: Outcome) -> list[FixAdvice]:
    found = {fix.fix: fix for cause in outcome.proof.causes for fix in cause.fixes if fix.verdict != "not-tested"}
    return sorted(found.values(), key=lambda fix: fix.verdict != "confirmed")


def _moved(fix: FixAdvice) -> str:
    if fix.verdict != "confirmed" or fix.before is None or fix.after is None:
        return ""
    return f" ({SIGNALS[fix.signal].words or fix.signal} {fix.before:.3g} → {fix.after:.3g})"


def without_fixes(diagnosis: Diagnosis) -> Diagnosis:
    """The diagnosis of the run for a reader who gets the verdicts on its fixes right after it."""
    return replace(diagnosis, causes=tuple(replace(cause, fixes=()) for cause in diagnosis.causes))
