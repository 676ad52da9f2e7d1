"""The staging buffers against a plain recomputation, for any sequence of shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnstab.probe.buffering import device_copy
from gnnstab.probe.buffering._totals import Totals, merge
from gnnstab.probe.buffering.stats_buffer import LARGE, REDUCED, StatsBuffer

SHAPES = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([(), (1,), (3, 2), (0, 4), (7,), (LARGE + 5,), (40, 50)])), max_size=12
)


def tensor_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of this shape, of mixed sign and size."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 3)


def plain(parts: dict[int, list[Tensor]]) -> dict[int, tuple[float, float, float, int]]:
    """Slot → minimum, maximum, sum of squares, count."""
    found = {}
    for slot, tensors in parts.items():
        values = torch.cat([t.double().flatten() for t in tensors])
        if len(values):
            found[slot] = (float(values.min()), float(values.max()), float(values.square().sum()), len(values))
    return found


def as_dict(totals: Totals) -> dict[int, tuple[float, float, float, int]]:
    """The same of totals."""
    columns = (totals.minimum, totals.maximum, totals.square, totals.count)
    return {int(slot): tuple(column[i] for column in columns) for i, slot in enumerate(totals.slots)}  # type: ignore[misc]


@settings(max_examples=80, deadline=None)
@given(steps=st.lists(SHAPES, min_size=1, max_size=4), capacity=st.sampled_from([LARGE + 8, 1 << 17]))
def test_any_sequence_of_shapes(steps: list[list[tuple[int, tuple[int, ...]]]], capacity: int) -> None:
    stage = StatsBuffer(lambda slot, reason: None, capacity)
    slots = [(i,) for i in range(6)]
    for number, step in enumerate(steps):
        parts: dict[int, list[Tensor]] = {}
        for position, (slot, shape) in enumerate(step):
            value = tensor_of(shape, 10 * number + position)
            parts.setdefault(slot, []).append(value.clone())
            stage.put(slots[slot], [value])
            value.fill_(torch.nan)  # What happens to a tensor afterwards must not matter.
        found, expected = as_dict(stage.take()), plain(parts)
        assert found.keys() == expected.keys()
        for slot, numbers in expected.items():
            assert found[slot][:2] == numbers[:2]
            assert np.isclose(found[slot][2], numbers[2], rtol=1e-5)
            assert found[slot][3] == numbers[3]
        assert len(stage.take().slots) == 0


def test_more_large_tensors_than_are_kept_apart() -> None:
    stage, values = StatsBuffer(lambda slot, reason: None), torch.ones(LARGE + 1)
    for i in range(REDUCED + 3):
        stage.put((0,), [values * i])
    totals = stage.take()
    assert list(totals.count) == [(REDUCED + 3) * (LARGE + 1)]
    assert list(totals.maximum) == [REDUCED + 2]


def test_non_finite_values_are_carried_through() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        for size in (5, LARGE + 5):
            stage, values = StatsBuffer(lambda slot, reason: None), torch.zeros(size)
            values[size // 2] = bad
            stage.put((0,), [values])
            rows, finite = stage.take().rows()
            assert not finite
            assert rows[0, 4] == -1


def test_what_has_no_extremes_is_refused_with_a_reason() -> None:
    refused: list[tuple[int, str]] = []
    stage = StatsBuffer(lambda slot, reason: refused.append((slot, reason)))
    stage.put((1, 2, 3), [torch.zeros(3, dtype=torch.long), torch.eye(3).to_sparse(), torch.ones(2)])
    assert [slot for slot, _ in refused] == [1, 2]
    assert list(stage.take().slots) == [3]


def test_squares_beyond_the_range_of_their_precision_are_bounded_by_the_largest_entry() -> None:
    stage = StatsBuffer(lambda slot, reason: None)
    stage.put((0, 1), [torch.full((LARGE + 1,), 1e30), torch.full((LARGE + 1,), 1e-30)])
    rows, finite = stage.take().rows()
    assert finite
    assert np.allclose(rows[:, 2], [1e30, 1e-30], rtol=1e-6)


def test_float64_is_kept_as_it_is_also_where_it_comes_later() -> None:
    stage, slots = StatsBuffer(lambda slot, reason: None), ((0, 1), (2,), (3, 4))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.float64):
        values = [tensor_of((5,), seed).to(dtype) for seed in range(5)]
        values[1] = values[1].double() if dtype is torch.float64 else values[1]
        if dtype is torch.float64:
            values[0] = values[0] * 1e200  # Its square is beyond float64 too.
        stage.put(slots[0], values[:2])
        stage.put(slots[1], values[2:3])
        assert stage.put_joined(slots[2], [5, 5], values[3:]) is (dtype is torch.float32)
        if dtype is not torch.float32:
            stage.put(slots[2], values[3:])
        rows, finite = stage.take().rows()
        assert finite
        assert rows[:, 1].tolist() == [float(value.max()) for value in values]
        assert rows[0, 2] == pytest.approx(float(values[0].double().abs().max()), rel=1)


def test_merging_keeps_the_order_of_first_appearance() -> None:
    def part(slots: list[int]) -> Totals:
        ones = np.ones(len(slots))
        return Totals(np.array(slots), -ones, ones, ones, np.ones(len(slots), np.int64))

    merged = merge([part([4, 2]), part([2, 9])])
    assert list(merged.slots) == [4, 2, 9]
    assert list(merged.count) == [1, 2, 1]


def test_a_device_gets_one_copy_for_a_call_and_reduces_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_copy, "is_on_host", lambda tensor: False)
    stage, slots = StatsBuffer(lambda slot, reason: None), (0, 1, 2)
    reductions: list[str] = []
    reduce = torch.segment_reduce

    def counted(data: Tensor, kind: str, **options: Any) -> Tensor:
        reductions.append(kind)
        return reduce(data, kind, **options)

    monkeypatch.setattr(torch, "segment_reduce", counted)
    for step in range(3):
        values = [torch.randn(3, 2), torch.randn(LARGE + 5) * 1e30, torch.full((4,), torch.nan if step == 1 else 2.0)]
        stage.put(slots, values)
        stage.put((3,), [values[0] * 2])
        sent = stage.send()
        assert sent.waits
        found = sent.result()
        assert found.exact
        expected = plain({i: [v] for i, v in enumerate([*values, values[0] * 2])})
        for slot, numbers in as_dict(found).items():
            assert numbers == pytest.approx(expected[slot], nan_ok=True)
    assert reductions == ["min", "max", "sum"] * 3


@pytest.mark.parametrize("size", [1e-30, 1e-19, 1e-13, 1.0, 1e18, 1e19, 1e30])
@pytest.mark.parametrize("beside", [1.0, 0.0])
def test_squares_of_any_size_are_summed_as_in_float64(size: float, beside: float) -> None:
    """Those that leave the range of float32 as well as those that do not, beside others that never leave it."""
    stage = StatsBuffer(lambda slot, reason: None)
    own, other = tensor_of((LARGE,), 0) * size, tensor_of((40, 50), 1) * beside
    with np.errstate(all="raise"):
        stage.put((0, 1), [own, other])
        found = stage.take()
    assert np.allclose(found.square, [t.double().square().sum() for t in (own, other)], rtol=1e-6, atol=0.0)
    assert found.minimum.tolist() == [float(own.min()), float(other.min())]
    assert np.allclose(
        found.rows()[0][:, 2], [t.double().square().mean().sqrt() for t in (own, other)], rtol=1e-6, atol=0
    )
