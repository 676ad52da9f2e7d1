"""verify, ladder, scale and replay from the command line."""

import json
import shlex

import pytest
import torch
from gnnstab.cli.group import run
from torch import nn

from models.stacks import Stack, random_batch


@pytest.fixture
def case(tmp_path):
    torch.save(random_batch(16, 5, 16), tmp_path / "batch.pt")
    return f"--model models.stacks:Stack --batch {tmp_path / 'batch.pt'}"


@pytest.fixture
def sharp(tmp_path):
    """A model whose first layer saturates, and its file."""
    model = Stack()
    with torch.no_grad():
        model.convs[0].lin_query.weight *= 100
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    return model, tmp_path / "checkpoint.pt"


def call(capsys, line):
    code = run(shlex.split(line))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_verify_prints_the_verdict_and_its_exit_code(capsys, case):
    line = f"verify {case} --fix residual --option weight=0.5 --seeds 1 --steps 1 --format json"
    code, out, _ = call(capsys, line)
    (verdict,) = json.loads(out)
    assert verdict["fix"] == "residual"
    assert verdict["options"] == {"weight": 0.5}
    assert (code, verdict["verdict"]) == (1, "not-tested")
    assert "nothing to cure" in verdict["reason"]


def test_verify_without_a_fix_tries_the_recommended_ones(capsys, case, sharp):
    _, out, err = call(capsys, f"verify {sharp[1]} {case} --seeds 1 --steps 1 --format json")
    tried = [verdict["fix"] for verdict in json.loads(out)]
    assert "qk-clip" in tried
    assert all(fix in err for fix in tried)
    code, _, err = call(capsys, f"verify {case} --seeds 1 --steps 1")
    assert code == 3
    assert "no fix is recommended" in err


def test_verify_exports_a_clipped_state_dict_to_a_new_file_only(capsys, case, sharp, tmp_path):
    model, path = sharp
    line = f"verify {path} {case} --fix qk-clip --seeds 1 --steps 1 --export {tmp_path / 'repaired.pt'}"
    call(capsys, line)
    repaired = torch.load(tmp_path / "repaired.pt", weights_only=True)
    assert repaired["convs.0.lin_query.weight"].norm() < 0.5 * model.convs[0].lin_query.weight.norm()
    assert torch.equal(repaired["convs.1.lin_key.weight"], model.convs[1].lin_key.weight)
    code, _, err = call(capsys, line)
    assert code == 2
    assert "overwrites no checkpoint" in err


def test_scale_and_replay_print_their_tables(capsys, case):
    code, out, _ = call(capsys, f"scale {case} --factors 1,2,3 --seeds 1")
    assert code == 0
    assert len(out.splitlines()) <= 15
    assert "Growth with in-degree: spread of all scores" in out
    code, out, _ = call(capsys, f"scale {case} --factors 1,2,3 --seeds 1 -v")
    assert "score.std of convs.0: in-degree^" in out
    code, out, _ = call(capsys, f"replay {case}")
    assert (code, out.strip()) == (0, "Every stage of this forward is finite here.")


def test_ladder_uses_the_users_training_function(capsys, case):
    code, out, _ = call(capsys, f"ladder {case} --train {__name__}:train --seeds 1 -v")
    assert code == 0
    assert out.splitlines()[-1].startswith("Stable from the rung “baseline” on.")
    assert "train, 1 losses" in out


def train(model: nn.Module, *, seed: int, **settings: float) -> list[float]:
    return [0.5]


@pytest.mark.parametrize(
    ("line", "told"),
    [("verify {} --fix residuals", "did you mean 'residual'"), ("scale {} --factors a,b", "no list of numbers")],
)
def test_mistakes_are_one_line(capsys, case, line, told):
    code, _, err = call(capsys, line.format(case))
    assert code == 2
    assert told in err


def test_verify_fits_a_screen_says_the_rate_and_shows_everything_on_request(capsys, case, tmp_path):
    model, run_file, bare = Stack(), tmp_path / "run.pt", tmp_path / "bare.pt"
    with torch.no_grad():
        for conv in model.convs:
            conv.lin_query.weight *= 30
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-6)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, run_file)
    torch.save(model.state_dict(), bare)

    def verified(file, more="", seeds=1):
        line = f"verify {file} {case} --fix qk-clip --fix residual --seeds {seeds} --steps 2 {more}"
        return call(capsys, line)[1]

    out = verified(run_file, seeds=3)
    assert len(out.splitlines()) <= 15
    assert max(map(len, out.splitlines())) <= 80
    assert "at learning rate 0.02" in out
    assert "at learning rate 0.5" in verified(run_file, "--lr 0.5")
    # Without an optimizer's state in the file the rate is this command's own, and that is said.
    assert "at learning rate 0.001; yours is not known: pass --lr" in verified(bare)
    out = verified(run_file, "-v", seeds=3)
    assert "Adam(lr=0.02, eps=1e-06)" in out
    assert out.count("Compared: ") == len({line for line in out.splitlines() if "Compared: " in line})


@pytest.mark.parametrize("more", ["--lr nan", "--lr inf", "--lr 0", "--fix score-cap:cap=nan", "--fix dropout:p=2"])
def test_verify_refuses_numbers_out_of_range(capsys, case, more):
    code, _, err = call(capsys, f"verify {case} --fix lower-lr {more}")
    assert code == 2
    assert "unexpected" not in err


def test_replay_of_what_is_no_bundle_says_where_the_bundles_stand(capsys, tmp_path):
    (tmp_path / "a.bundle-7").mkdir()
    (tmp_path / "a.bundle-7" / "event.json").write_text("{}")
    for name in ("a.gnnstab", "b.gnnstab"):
        (tmp_path / name).write_bytes(b"SQLite format 3\x00")
    for target, said in ((tmp_path, "no bundle"), (tmp_path / "a.gnnstab", "a trace holds no weights")):
        code, _, err = call(capsys, f"replay {target}")
        assert (code, said in err, "a.bundle-7" in err) == (2, True, True)
    assert "no bundle stands beside it" in call(capsys, f"replay {tmp_path / 'b.gnnstab'}")[2]


def test_replay_shows_the_last_stages_by_argument_and_tries_no_fix_on_bad_data(capsys, tmp_path):
    bad = random_batch(16, 5, 16)
    bad["x"][3, 1] = float("inf")
    torch.save((bad["x"], bad["edge_index"]), tmp_path / "bad.pt")
    line = f"replay --model models.stacks:Stack --batch {tmp_path / 'bad.pt'}"
    code, out, _ = call(capsys, line)
    assert code == 1
    assert len(out.splitlines()) <= 15
    assert "input x" in out
    assert "score-cap" not in out
    assert "score-cap: " in call(capsys, f"{line} --fix score-cap")[1]
