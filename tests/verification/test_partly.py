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


@pytest.mark.parametrize("what", ["export", "store"])
def test_a_name_that_is_taken_is_refused_before_anything_runs(asked, capfd, what: str, monkeypatch) -> None:
    def run_nothing(*_: object, **__: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("gnnstab.verification._arms.observe", run_nothing)
    torch.save(asked, "good.pt")
    Path("taken").write_text("precious\n")
    line = f"verify good.pt --fix qk-clip --{what} taken"
    code, _, err = call(capfd, line)
    assert code == 2 and "taken" in err and "it ran" not in err and Path("taken").read_text() == "precious\n"


def test_what_holds_a_nan_or_does_nothing_is_exported_as_no_repair(asked, capfd) -> None:
    line = "verify sharp.pt --fix qk-clip --seeds 1 --steps 1 --export"
    asked["convs.0.lin_query.weight"] *= 100
    torch.save(asked, "sharp.pt")
    call(capfd, f"{line} repaired.pt")
    assert Path("repaired.pt").exists()
    asked["convs.1.lin_value.weight"][0, 0] = math.nan
    torch.save(asked, "sharp.pt")
    code, _, err = call(capfd, f"{line} spoilt.pt")
    assert code != 0 and "was not written" in err and not Path("spoilt.pt").exists()
