"""Mixed precision: gradients are recorded unscaled, and a step that the scaler skips is a normal thing."""

from __future__ import annotations

import pytest
import torch

from side_by_side import Loop, Net, Run, codes, graph, unnoticed

STEPS = 8


def amp_loop(dtype: torch.dtype, scaler_options: dict[str, float], told: bool) -> Loop:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", **scaler_options)
        with run.watching(model, optimizer=optimizer, **({"scaler": scaler} if told else {})) as monitor:
            for step in range(STEPS):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=dtype):
                    output = model(*graph(step))
                    loss = output.float().square().mean()
                scaler.scale(loss).backward()
                run.keep(output)
                run.keep_gradients(model)
                if step % 2:
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                if monitor is not None:
                    monitor.loss(loss)
            run.keep(*model.parameters(), torch.tensor(scaler.get_scale()))

    return loop


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_and_a_scaler(dtype: torch.dtype) -> None:
    run = unnoticed(amp_loop(dtype, {"init_scale": 1024.0}, told=True))
    with run.monitor.trace as trace:
        rows = trace.steps()
    assert [row.step for row in rows] == list(range(STEPS))
    assert not any(row.skipped for row in rows)
    assert all(row.scale == 1024.0 and row.loss is not None for row in rows)
    assert run.warned == []


def test_gradients_are_recorded_without_the_scale() -> None:
    norms = {}
    for scale in (1.0, 2.0**20):
        run = unnoticed(amp_loop(torch.bfloat16, {"init_scale": scale}, told=True))
        with run.monitor.trace as trace:
            sites = trace.sites(layer="second", site="grad_output")
            (at_output,) = sites.values()
            norms[scale] = [row.grad_norm for row in trace.steps()] + at_output["rms"].tolist()
    assert len(norms[1.0]) == 2 * STEPS and norms[1.0] == pytest.approx(norms[2.0**20], rel=1e-5)


@pytest.mark.parametrize("told", [True, False], ids=["scaler given", "scaler not given"])
def test_skipped_steps_are_no_finding(told: bool) -> None:
    # The first scales overflow the float32 gradients; each skip lowers the scale.
    options = {"init_scale": 1e38, "backoff_factor": 1e-14}
    run = unnoticed(amp_loop(torch.float16, options, told))
    assert run.warned == []
    assert "GS502" not in codes(run.monitor) and "GS603" not in codes(run.monitor)
    with run.monitor.trace as trace:
        rows = trace.steps()
        assert trace.events("non-finite") == ()
    if told:
        skipped = [row.step for row in rows if row.skipped]
        assert skipped == list(range(len(skipped))) and 0 < len(skipped) < STEPS == len(rows)


@pytest.mark.parametrize("schedule", [50, "every step"])
@pytest.mark.parametrize("way", ["loss", "overflow", "overflow untold", "scale", "scale untold"])
def test_of_a_scaler_that_was_not_given_only_gradients_are_excused(way: str, schedule: int | str) -> None:
    """In step 5 the loss is NaN, the forward overflows, or the loss overflows its gradients alone and is finite."""
    untold = way.endswith("untold")

    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        with run.watching(model, optimizer=optimizer, schedule=schedule) as monitor:
            for step in range(STEPS):
                optimizer.zero_grad()
                x, edge_index = graph(step)
                broken = step == 5
                with torch.autocast("cpu", dtype=torch.float16):
                    output = model(x * 1e6 if broken and way.startswith("overflow") else x, edge_index)
                loss = output.float().square().mean()
                if broken and way == "loss":
                    loss = loss * torch.nan
                elif broken and way.startswith("scale"):
                    loss = loss * 1e36
                scaler.scale(loss).backward()
                if monitor is not None and not untold:
                    monitor.loss(loss)
                scaler.step(optimizer)
                scaler.update()
            run.keep(*model.parameters(), torch.tensor(scaler.get_scale()))

    run = unnoticed(loop, on_finding="ignore")
    assert float(run.kept[-2]) == 2.0**15  # type: ignore[arg-type]
    with run.monitor.trace as trace:
        assert [event.step for event in trace.events("non-finite")] == ([] if way.startswith("scale") else [5])
