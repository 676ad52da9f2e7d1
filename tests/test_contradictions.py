"""No diagnosis says two things that exclude one another; those of the fault bench are looked at where they are made."""

import math
import re

import pytest
import torch

import gnnstab
from faults.detectors import by_gnnstab, prepared
from faults.injections import INJECTIONS
from faults.splits import single
from gnnstab.report import summary
from models.informarl import load_actor, policy_loss, sample_batch
from models.stacks import Stack, random_batch


def contradictions(diagnosis):
    """Pairs of sentences in one diagnosis that cannot both be true."""
    found, text = [], str(diagnosis)
    causes = {cause.cause: cause for cause in diagnosis.causes}
    layers = [layer for layer in diagnosis.layers if layer.attention]
    residual = causes["no-residual"]
    if residual.status == "root-cause" and layers and all(layer.identity_path for layer in layers):
        found.append("an identity path leads around every layer, and none is the root cause")
    words = summary.verdict(diagnosis)[0]
    broken = [s for s in diagnosis.signals if s.name == "weight.non_finite" and s.value > 0]
    if words == "STABLE" and (diagnosis.events or broken):
        found.append("stable, and a value is not finite")
    if "weights are finite" in text and (broken or not any(s.name == "weight.non_finite" for s in diagnosis.signals)):
        found.append("the weights are called finite, and nobody looked or some are not")
    roots = diagnosis.root_causes()
    if roots and "cause not established" in summary.verdict(diagnosis)[1].lower():
        found.append("a root cause is named, and the verdict says that none is established")
    for cause in roots:
        if "ruled out" in cause.reason:
            found.append(f"{cause.cause} is the root cause, and ruled out")
        if cause.how == "undone" and not (cause.share is not None and cause.share >= 0.5):
            found.append(f"{cause.cause} is the root cause by an undoing that did little")
    for finding in diagnosis.findings:
        if "Cause not established" in finding.message and finding.explained_by is not None:
            found.append(f"{finding.code}: not established, and explained")
        if "not its weights" in finding.message and "the weights of" in finding.message:
            found.append(f"{finding.code}: not the weights, and the weights")
        if "earned" in finding.message and finding.severity != "info":
            found.append(f"{finding.code}: earned, and a warning")
    shares = [float(share) for share in re.findall(r"(-?\d+) % of the way back", text)]
    if any(not 0 <= share <= 100 for share in shares):
        found.append("a share of the way that is none")
    return found


NO_RESIDUAL = next(i for i in INJECTIONS if i.cause == "no-residual")

CASES = {
    "the fault that the bench tries nowhere else": lambda: by_gnnstab(
        *prepared(single("development", NO_RESIDUAL, 0)[1])
    ),
    "the actor": lambda: gnnstab.diagnose(load_actor(), batch=sample_batch(), loss=policy_loss),
    "the saturated actor": lambda: gnnstab.diagnose(load_actor("agents7_lr7e-3_saturated"), batch=sample_batch()),
    "deep, with identity": lambda: gnnstab.diagnose(Stack(16, residual=1.0), batch=random_batch()),
    "deep, without": lambda: gnnstab.diagnose(Stack(16), batch=random_batch()),
    "a weight that is NaN": lambda: gnnstab.diagnose(with_nan(), batch=random_batch()),
    "a feature that is NaN": lambda: gnnstab.diagnose(
        Stack(3), batch={**random_batch(), "x": random_batch()["x"].index_fill(0, torch.tensor([3]), math.nan)}
    ),
}


def with_nan():
    model = Stack(3)
    with torch.no_grad():
        model.convs[1].lin_value.weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize("case", CASES)
def test_no_two_sentences_exclude_each_other(case):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert contradictions(CASES[case]()) == []


def test_this_test_can_fail():
    from dataclasses import replace

    diagnosis = gnnstab.diagnose(Stack(16, residual=1.0), batch=random_batch())
    causes = tuple(
        replace(c, status="root-cause", how="undone", share=0.1) if c.cause == "no-residual" else c
        for c in diagnosis.causes
    )
    assert len(contradictions(replace(diagnosis, causes=causes))) == 2
