"""verify, ladder, scale and replay from the command line."""

import json

import pytest
import torch
from gnnstab.cli.group import run
from torch import nn

from models.stacks import Stack, random_batch


@pytest.fixture
def batch(tmp_path):
    torch.save(random_batch(16, 5, 16), tmp_path / "batch.pt")
    return str(tmp_path / "batch.pt")


def call(capsys, *arguments):
    code = run(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_verify_prints_the_verdict_and_its_exit_code(capsys, batch):
    code, out, _ = call(
        capsys, "verify", "--model", "models.stacks:Stack", "--batch", batch, "--fix", "residual", "--option", "weight=0.5",
        "--seeds", "1", "--steps", "1", "--format", "json",
    )  # fmt: skip
    (verdict,) = json.loads(out)
    assert verdict["fix"] == "residual"
    assert verdict["options"] == {"weight": 0.5}
    assert (code, verdict["verdict"]) == (1, "no-effect")
    assert "nothing to cure" in verdict["reason"]


def test_verify_without_a_fix_tries_the_recommended_ones(capsys, batch, tmp_path):
    model = Stack()
    with torch.no_grad():
        model.convs[0].lin_query.weight *= 100
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    arguments = [str(tmp_path / "checkpoint.pt"), "--model", "models.stacks:Stack", "--batch", batch]
    _, out, err = call(capsys, "verify", *arguments, "--seeds", "1", "--steps", "1", "--format", "json")
    tried = [verdict["fix"] for verdict in json.loads(out)]
    assert "qk-clip" in tried
    assert all(fix in err for fix in tried)
    code, _, err = call(capsys, "verify", *arguments[1:], "--seeds", "1", "--steps", "1")
    assert code == 3
    assert "no fix is recommended" in err


def test_verify_exports_a_clipped_state_dict_to_a_new_file_only(capsys, batch, tmp_path):
    model = Stack()
    with torch.no_grad():
        model.convs[0].lin_query.weight *= 100
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    arguments = [
        "verify", str(tmp_path / "checkpoint.pt"), "--model", "models.stacks:Stack", "--batch", batch,
        "--fix", "qk-clip", "--seeds", "1", "--steps", "1", "--export", str(tmp_path / "repaired.pt"),
    ]  # fmt: skip
    call(capsys, *arguments)
    repaired = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert repaired["convs.0.lin_query.weight"].norm() < 0.5 * model.convs[0].lin_query.weight.norm()
    assert torch.equal(repaired["convs.1.lin_key.weight"], model.convs[1].lin_key.weight)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "overwrites no checkpoint" in err


def test_scale_and_replay_print_their_tables(capsys, batch):
    case = ["--model", "models.stacks:Stack", "--batch", batch]
    code, out, _ = call(capsys, "scale", *case, "--factors", "1,2,3", "--seeds", "1")
    assert code == 0
    assert len(out.splitlines()) <= 15
    assert "Growth with in-degree: spread of all scores" in out
    code, out, _ = call(capsys, "scale", *case, "--factors", "1,2,3", "--seeds", "1", "-v")
    assert "score.std of convs.0: in-degree^" in out
    code, out, _ = call(capsys, "replay", *case)
    assert (code, out.strip()) == (0, "Every stage of this forward is finite here.")


def test_ladder_uses_the_users_training_function(capsys, batch):
    code, out, _ = call(
        capsys,
        "ladder",
        "--model",
        "models.stacks:Stack",
        "--batch",
        batch,
        "--train",
        f"{__name__}:train",
        "--seeds",
        "1",
        "-v",
    )
    assert code == 0
    assert out.splitlines()[-1].startswith("Stable from the rung “baseline” on.")
    assert "train, 1 losses" in out


def train(model: nn.Module, *, seed: int, **settings: float) -> list[float]:
    return [0.5]


def test_mistakes_are_one_line(capsys, batch):
    case = ["--model", "models.stacks:Stack", "--batch", batch]
    code, _, err = call(capsys, "verify", *case, "--fix", "residuals")
    assert code == 2
    assert "did you mean 'residual'" in err
    code, _, err = call(capsys, "scale", *case, "--factors", "a,b")
    assert code == 2
    assert "no list of numbers" in err


def test_verify_fits_a_screen_says_the_rate_and_shows_everything_on_request(capsys, batch, tmp_path):
    model = Stack()
    with torch.no_grad():
        for conv in model.convs:
            conv.lin_query.weight *= 30
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-6)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    case = ["--model", "models.stacks:Stack", "--batch", batch, "--fix", "qk-clip", "--fix", "residual"]
    short = ("--seeds", "3", "--steps", "2")
    _, out, _ = call(capsys, "verify", str(tmp_path / "run.pt"), *case, *short)
    assert len(out.splitlines()) <= 15
    assert max(map(len, out.splitlines())) <= 80
    assert "at learning rate 0.02" in out
    _, out, _ = call(capsys, "verify", str(tmp_path / "run.pt"), *case, *short, "--lr", "0.5")
    assert "at learning rate 0.5" in out
    # Without an optimizer's state in the file the rate is this command's own, and that is said.
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    _, out, _ = call(capsys, "verify", str(tmp_path / "bare.pt"), *case, *short)
    assert "at learning rate 0.001; yours is not known: pass --lr" in out
    _, out, _ = call(capsys, "verify", str(tmp_path / "run.pt"), *case, *short, "-v")
    assert "Adam(lr=0.02, eps=1e-06)" in out
    assert out.count("Compared: ") == len({line for line in out.splitlines() if "Compared: " in line})


def test_replay_shows_the_last_stages_by_argument_and_tries_no_fix_on_bad_data(capsys, tmp_path):
    bad = random_batch(16, 5, 16)
    bad["x"][3, 1] = float("inf")
    torch.save((bad["x"], bad["edge_index"]), tmp_path / "bad.pt")
    arguments = ["replay", "--model", "models.stacks:Stack", "--batch", str(tmp_path / "bad.pt")]
    code, out, _ = call(capsys, *arguments)
    assert code == 1
    assert len(out.splitlines()) <= 15
    assert "input x" in out
    assert "score-cap" not in out
    _, out, _ = call(capsys, *arguments, "--fix", "score-cap")
    assert "score-cap: " in out
