"""Casts that take the differences of a tensor away, beside casts that leave them, in both faces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digits import asked, lost, watched
from gnnstab.probe.places._casts import _stored
from gnnstab.rules.gs504_lost_digits import LostDigits

Encode = Callable[[Tensor], Tensor]


def days_in_half(days: Tensor) -> Tensor:
    return days.half()


def column_of_days_in_bf16(days: Tensor) -> Tensor:
    return days[:, 1:].to(torch.bfloat16)


def days_of_the_week_in_half(days: Tensor) -> Tensor:
    return (days - 20_000).half()


def waits_between_large_times(days: Tensor) -> Tensor:
    return (days + 1e9) - (days.roll(1, 0) + 1e9)


def waits(days: Tensor) -> Tensor:
    return days - days.roll(1, 0)


def turns_in_bf16(days: Tensor) -> Tensor:
    return ((days - 20_000).bfloat16() * 300).cos()


def turns(days: Tensor) -> Tensor:
    return ((days - 20_000) * 300).cos()


def left_alone(days: Tensor) -> Tensor:
    return days - 20_000


class Calendar(nn.Module):
    """Sales by the day of the week, the days counted from 1970."""

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.enter, self.leave = encode, nn.Linear(2, 16), nn.Linear(16, 1)

    def forward(self, days: Tensor) -> Tensor:
        week = self.encode(days).float() * (2 * torch.pi / 7)
        week = week.expand(len(days), 2)
        return self.leave(torch.relu(self.enter(week.sin())))


def batch(shift: float = 20_000.0) -> Tensor:
    return torch.arange(128.0).view(64, 2) % 23 + shift


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (days_in_half, "cast to float16, which cannot hold its differences: of 23 distinct values 2 are left"),
        (
            column_of_days_in_bf16,
            "cast to bfloat16, which cannot hold its differences: of 23 distinct values 1 are left",
        ),
        (days_of_the_week_in_half, ""),
        (waits_between_large_times, "differences of days are taken of numbers up to 1e+09 in float32"),
        (waits, ""),
        (turns_in_bf16, "in bfloat16, which are rounded by"),
        (turns, ""),
        (left_alone, ""),
    ],
)
def test_differences_that_a_cast_takes_away(face: Callable[..., Any], encode: Encode, words: str) -> None:
    diagnosis = face(Calendar(encode), batch())
    assert [words in f.message for f in lost(diagnosis)] == ([True] if words else [])
    roots = [(cause.cause, cause.how) for cause in diagnosis.root_causes()]
    assert (("precision", "observed") in roots) == bool(words)
    for finding in lost(diagnosis):
        assert finding.layer == "days"


class Clock(nn.Module):
    """How long after the first of eight each entry of a log was made, in minutes."""

    def __init__(self, since: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.since, self.enter = since, nn.Linear(1, 4)

    def forward(self, seconds: Tensor) -> Tensor:
        return self.enter(self.since(seconds, seconds[torch.arange(len(seconds)) // 8 * 8]).view(-1, 1) / 60).cos()


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("since", "start", "named"),
    [
        (lambda one, other: one.float() - other.float(), 1_718_000_000, True),
        (lambda one, other: one.to(torch.float32) - other.to(torch.float32), 1_718_000_000, True),
        (lambda one, other: (one - other).float(), 1_718_000_000, False),
        (lambda one, other: (one.double() - other.double()).float(), 1_718_000_000, False),
        (lambda one, other: one.float() - other.float(), 16_000_000, False),  # float32 holds these exactly.
    ],
)
def test_whole_numbers_that_are_cast_before_their_difference_is_taken(
    face: Callable[..., Any], since: Callable[[Tensor, Tensor], Tensor], start: int, named: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    seconds = start + torch.arange(128) // 8 * 400 + torch.randint(0, 90, (128,), generator=g)
    found = lost(face(Clock(since), seconds))
    assert [f.layer for f in found] == (["seconds"] if named else [])


class Line(nn.Module):
    """Multiplies what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(2, 1)

    def forward(self, days: Tensor) -> Tensor:
        return self.weigh(days)


@pytest.mark.parametrize(
    ("precision", "shift", "named"), [("bf16", 2e4, True), ("bf16", 0.0, False), ("fp32", 2e4, False)]
)
def test_autocast_casts_as_well(precision: str, shift: float, named: bool) -> None:
    assert bool(lost(asked(Line(), batch(shift), precision))) == named


@pytest.mark.parametrize(
    ("column", "lost"),
    [
        (lambda hour: (1.7e9 + 3600 * hour).bfloat16(), True),
        (lambda hour: (1.7e9 + 3600 * hour).float(), False),
        (lambda hour: (1.7e9 + 20 * hour).float(), True),
        (lambda hour: (hour - 12).bfloat16(), False),
        (lambda hour: torch.full_like(hour, 3.0).bfloat16(), False),
        (lambda hour: (2000 + (hour > 12)).half(), False),
        (lambda hour: (3000 + hour / 12).half(), True),
    ],
)
def test_digits_that_the_stored_format_has_lost(column: Encode, lost: bool) -> None:
    hour = 24 * torch.rand(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = _stored(column(hour))
    assert (found is not None and found[0] > LostDigits().lost) is lost


class Wheel(nn.Module):
    """Turns pairs of columns by angles that a table of frequencies makes of positions."""

    def __init__(self, dtype: torch.dtype, angles: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.angles = nn.Linear(8, 4), angles
        self.register_buffer("frequencies", (100.0 ** -(torch.arange(8) / 8)).to(dtype))

    def forward(self, place: Tensor) -> Tensor:
        angles = self.angles(place, self.frequencies)
        return self.enter(angles.sin().float())


def of_positions(place: Tensor, frequencies: Tensor) -> Tensor:
    return place.to(frequencies.dtype)[:, None] * frequencies


def of_counted_rows(place: Tensor, frequencies: Tensor) -> Tensor:
    return torch.outer(torch.arange(len(place)).to(frequencies) + 2000, frequencies)


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(
    ("dtype", "angles", "named"),
    [
        (torch.bfloat16, of_positions, "place"),
        (torch.bfloat16, of_counted_rows, "frequencies"),
        (torch.float32, of_positions, None),
        (torch.float32, of_counted_rows, None),
    ],
)
def test_angles_that_a_table_of_few_bits_makes_of_positions(
    face: Callable[..., Any], dtype: torch.dtype, angles: Callable[[Tensor, Tensor], Tensor], named: str | None
) -> None:
    found = lost(face(Wheel(dtype, angles), torch.arange(64) + 2000))
    assert [f.layer for f in found] == ([named] if named else [])
