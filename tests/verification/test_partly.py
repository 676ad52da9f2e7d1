"""What verify, ladder, scale and replay were not given or did not run is said, and no calm word hides it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run

from models.stacks import Stack, random_batch


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(random_batch(16, 5, 16), "batch.pt")
    return {name: tensor.clone() for name, tensor in Stack().state_dict().items()}


def call(capfd: pytest.CaptureFixture[str], command: str, batch: str = "batch.pt") -> tuple[int, str, str]:
    code = run([*command.split(), "--model", "models.stacks:Stack", "--batch", batch])
    printed = capfd.readouterr()
    return code, " ".join(printed.out.split()), printed.err


def test_a_value_that_is_not_finite_breaks_before_any_limit(asked, capfd) -> None:
    torch.save(asked, "good.pt")
    code, out, _ = call(capfd, "scale good.pt --factors 0.5,1 --seeds 1")
    assert code == 0 and "not finite" not in out
    asked["convs.0.lin_key.weight"] *= math.nan
    torch.save(asked, "bad.pt")
    code, out, _ = call(capfd, "scale bad.pt --factors 0.5,1 --seeds 1")
    assert code == 1 and "First: not finite from in-degree" in out and "nothing breaks" not in out


def test_every_batch_is_replayed(asked, capfd) -> None:
    torch.save(asked, "good.pt")
    good, bad = random_batch(16, 5, 16), random_batch(16, 5, 16)
    bad["x"][3, 2] = math.nan
    torch.save([good, bad, good], "bad_batches.pt")
    torch.save([good, good], "good_batches.pt")
    code, out, _ = call(capfd, "replay good.pt", "bad_batches.pt")
    assert code == 1 and "Batch 2 of 3" in out
    code, out, _ = call(capfd, "replay good.pt", "good_batches.pt")
    assert code == 0 and "All 2 batches were run." in out
    assert "atch" not in call(capfd, "replay good.pt")[1]


@pytest.mark.parametrize("command", ["replay", "scale --factors 0.5,1 --seeds 1"])
def test_weights_that_the_file_does_not_hold_are_named(asked, capfd, command: str) -> None:
    torch.save(asked, "good.pt")
    own = [name for name in asked if not name.startswith("convs")]
    torch.save(
        {name: tensor for name, tensor in asked.items() if name not in own} | {"other": torch.ones(2)}, "part.pt"
    )
    assert not call(capfd, f"{command} good.pt")[2]
    said = call(capfd, f"{command} part.pt")[2]
    assert "only in the file, not used: other" in said
    assert not own or f"{len(own)} only in the model" in said
