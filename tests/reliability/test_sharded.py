"""A model whose parameters lie in several processes (FSDP2): trained as it would be alone, and nothing false is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("fsdp_training.py")
BAD_STEP = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
    ),
]


@pytest.fixture(scope="module", params=[1, 2])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank has left, in order."""
    folder = tmp_path_factory.mktemp("fsdp")
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param), SCRIPT, folder],
        capture_output=True,
        text=True,
        timeout=200,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


def test_the_training_is_the_same(said: list[dict[str, Any]]) -> None:
    assert all(rank["same"] for rank in said)


def test_attention_is_seen_and_what_is_not_is_named(said: list[dict[str, Any]]) -> None:
    for rank in said:
        good = rank["good"]
        assert good["warned"] == [] and "GS902" not in good["codes"]
        assert good["observed"] == 2 and good["causes"] == {}
        ((site, reason),) = good["blind"]
        assert site == "weight" and "spread over several processes" in reason


def test_a_nan_on_one_rank_is_found_without_waiting_for_the_others(said: list[dict[str, Any]]) -> None:
    bad = said[-1]["bad"]
    assert bad["warned"] == [] and "GS902" not in bad["codes"]
    assert bad["places"][0][0] == BAD_STEP and bad["causes"] == {"non-finite-data": "root-cause"}


def test_a_copy_that_would_wait_is_refused(said: list[dict[str, Any]]) -> None:
    assert not any("diagnosed" in rank[run] for rank in said for run in ("good", "bad"))
