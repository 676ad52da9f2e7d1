"""A distributed run: one trace per rank, read as one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import gnnstab
from effort import within
from gnnstab.errors import TraceError
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import Trace, TraceWriter, _locate, _paths, rank_path
from gnnstab.trace._opening import bytes_of

KEY = SeriesKey("gnn1", "train", 0, "score")


def write_rank(path: Path, rank: int, *, meta: bool = True, steps: int = 3) -> None:
    with TraceWriter(path, meta={"rank": str(rank), "user": f"of rank {rank}"} if meta else None) as writer:
        writer.layer(LayerFacts("gnn1", "TransformerConv", 0, True))
        writer.layer(LayerFacts(f"only{rank}", "Linear", 1 + rank, False))
        writer.blind(Blind("gnn1", "gate", "no gate"))
        if rank == 1:
            writer.series(SeriesKey("other", "train", 0, "score"))
        for step in range(steps):
            writer.sites(step, [writer.series(KEY)], [(0.0, 100.0 * rank + step, 1.0, 10, 0)])
            writer.step(StepRow(step, 0.0, float(rank), None, None, None))
        writer.measures([Measure(1, "gnn1", "train", 0, "attention.entropy", -1, rank / 10)])
        writer.event(Event(rank, "non-finite", message=f"on {rank}"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for rank in range(3):
        write_rank(rank_path(tmp_path / "run.gnnstab", rank), rank)
    return tmp_path


@pytest.mark.parametrize(
    "way",
    [
        lambda folder: folder,
        lambda folder: str(folder),
        lambda folder: folder / "run",
        lambda folder: folder / "run.gnnstab",
        lambda folder: [folder / f"run.rank{rank}.gnnstab" for rank in (2, 0, 1)],
    ],
)
def test_ranks_are_found_and_merged(run: Path, way: Callable[[Path], object]) -> None:
    with Trace.open(way(run)) as trace:  # type: ignore[arg-type]
        assert trace.ranks == (0, 1, 2)
        assert trace.meta["ranks"] == "0,1,2"
        assert trace.meta["user"] == "of rank 0"
        assert [layer.name for layer in trace.layers()] == ["gnn1", "only0", "only1", "only2"]
        assert trace.blind() == (Blind("gnn1", "gate", "no gate"),)
        rows = trace.sites()[KEY]
        each = [(step, rank) for step in range(3) for rank in range(3)]
        found = [(row["step"], row["rank"], row["maximum"]) for row in rows]
        assert found == [(step, rank, 100.0 * rank + step) for step, rank in each]
        assert [(row.step, row.rank, row.loss) for row in trace.steps()] == [(s, r, r) for s, r in each]
        assert list(trace.step_arrays()["rank"]) == [0, 1, 2] * 3
        assert [(row.rank, row.value) for row in trace.measures()] == [(0, 0.0), (1, 0.1), (2, 0.2)]
        assert [(event.rank, event.message) for event in trace.events()] == [(0, "on 0"), (1, "on 1"), (2, "on 2")]
        assert set(trace.keys().values()) == {KEY, SeriesKey("other", "train", 0, "score")}
        assert trace.complete
        assert trace.notes == ()


def test_one_rank_alone_keeps_its_rank(run: Path) -> None:
    with Trace.open(run / "run.rank2.gnnstab") as trace:
        assert trace.ranks == (2,)
        assert {event.rank for event in trace.events()} == {2}
        assert "ranks" not in trace.meta


def test_a_rank_that_died_costs_only_its_own_rows(run: Path) -> None:
    (run / "run.rank1.gnnstab").write_bytes(b"torn" * 999)
    with Trace.open(run / "run") as trace:
        assert trace.ranks == (0, 2)
        assert len(trace.notes) == 1
        assert "run.rank1.gnnstab: not a gnnstab trace" in trace.notes[0]
    for rank in (0, 2):
        (run / f"run.rank{rank}.gnnstab").write_bytes(b"torn" * 999)
    with pytest.raises(TraceError, match="not a gnnstab trace"):
        Trace.open(run / "run")


@pytest.mark.parametrize(
    ("lost", "content", "world"), [(1, None, ""), (1, b"", ""), (0, b"torn" * 99, ""), (2, b"", ""), (2, None, "3")]
)
def test_a_run_without_one_of_its_ranks_is_not_called_stable(
    lost: int, content: bytes | None, world: str, run: Path
) -> None:
    for rank in range(3) if world else ():
        (run / f"run.rank{rank}.gnnstab").unlink()
        with TraceWriter(rank_path(run / "run", rank), meta={"rank": str(rank), "world_size": world}) as writer:
            writer.layer(LayerFacts("gnn1", "TransformerConv", 0, True))
    file = run / f"run.rank{lost}.gnnstab"
    file.unlink() if content is None else file.write_bytes(content)
    with Trace.open(run) as trace:
        assert trace.missing_ranks == (lost,)
    diagnosis = gnnstab.diagnose(run)
    (finding,) = [f for f in diagnosis.findings if f.severity == "warning" and f.code == "GS903"]
    assert f"rank {lost}:" in finding.message and diagnosis.exit_code() == 1
    assert f"rank {lost} of the run" in " ".join(str(diagnosis).split())
    assert any("left out" in note and file.name in note for note in diagnosis.target.notes) == (content is not None)
    with Trace.open(run / "run.rank1.gnnstab" if lost != 1 else run / "run.rank2.gnnstab") as alone:
        assert alone.missing_ranks == ()


@pytest.mark.parametrize(("limit", "value"), [("MOST_ROWS", 20), ("LARGEST_FILE", 0), ("", 0)])
def test_a_run_takes_no_more_than_one_file_and_a_file_once(
    limit: str, value: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        monkeypatch.setattr(_locate, limit, value if limit == "MOST_ROWS" else 2 * bytes_of(f"{run}/run.rank0.gnnstab"))
    else:
        (run / "run.rank2.gnnstab").unlink()
        (run / "run.rank2.gnnstab").symlink_to("run.rank1.gnnstab")
    with Trace.open(run) as trace:
        assert trace.ranks == (0, 1)
        (note,) = trace.notes
    assert note.startswith("left out ") and "run.rank2.gnnstab" in note


def test_the_rank_comes_from_the_name_when_the_trace_does_not_say(tmp_path: Path) -> None:
    for rank in (1, 12):
        write_rank(rank_path(tmp_path / "run.gnnstab", rank), rank, meta=False)
    with Trace.open(tmp_path) as trace:
        assert trace.ranks == (1, 12)


def test_traces_without_a_rank_are_counted_in_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rank(tmp_path / f"{name}.gnnstab", 0, meta=False)
    with Trace.open([tmp_path / "a.gnnstab", tmp_path / "b.gnnstab"]) as trace:
        assert trace.ranks == (0, 1)
        assert "counted in the order" in trace.notes[0]
        assert len(trace.sites()[KEY]) == 6


def test_older_runs_of_a_folder_are_not_mixed_in(run: Path) -> None:
    for rank in range(3):
        write_rank(run / f"run.rank{rank}.gnnstab", rank, steps=5)
    assert sorted(path.name for path in run.glob("run.1.*")) == [f"run.1.rank{rank}.gnnstab" for rank in range(3)]
    with Trace.open(run) as trace:
        assert (trace.ranks, trace.last_step) == ((0, 1, 2), 4)
    with Trace.open(run / "run.1") as trace:
        assert (trace.ranks, trace.last_step) == ((0, 1, 2), 2)


def test_a_folder_must_hold_one_run(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "run.rank0.gnnstab", run / "second.gnnstab")
    with pytest.raises(TraceError, match=r"a folder with 2 runs; name one of them: .*run, .*second"):
        Trace.open(run)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TraceError, match=r"a folder without any \.gnnstab file"):
        Trace.open(empty)
    with pytest.raises(TraceError, match="an empty list of traces"):
        Trace.open([])


def test_a_folder_with_one_plain_trace(tmp_path: Path) -> None:
    write_rank(tmp_path / "run.gnnstab", 0, meta=False)
    for way in (tmp_path, tmp_path / "run"):
        with Trace.open(way) as trace:
            assert trace.ranks == (-1,)
            assert {row.rank for row in trace.steps()} == {-1}


def test_the_files_of_a_run_are_gathered_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path(f"run.rank{rank}.gnnstab") for rank in range(50_000)]
    monkeypatch.setattr(_paths, "_traces_in", lambda folder: files)
    with within(1):
        assert _paths.runs_in("") == {"run": tuple(files)}
