"""The packages that offer something are found by the names of their files; the others cost no import."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from gnnstab import plugins

NAMED = "[gnnstab.rules]\nown = pkg:Rule\n"
OTHER = "[console_scripts]\ngnnstab = gnnstab.cli:main\n"


@pytest.fixture(autouse=True)
def searched_anew() -> Iterator[None]:
    plugins._all.cache_clear()
    yield
    plugins._all.cache_clear()


def package(folder: Path, kind: str, text: str) -> str:
    home = folder / f"pkg-1.0.{kind}"
    home.mkdir()
    (home / ("METADATA" if kind == "dist-info" else "PKG-INFO")).write_text("Name: pkg\nVersion: 1.0\n")
    (home / "entry_points.txt").write_text(text)
    return str(folder)


def zipped(folder: Path, kind: str, text: str) -> str:
    archive = folder / "pkg.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"pkg-1.0.{kind}/METADATA", "Name: pkg\nVersion: 1.0\n")
        file.writestr(f"pkg-1.0.{kind}/entry_points.txt", text)
    return str(archive)


@pytest.mark.parametrize(("make", "kind"), [(package, "dist-info"), (package, "egg-info"), (zipped, "dist-info")])
def test_a_package_that_offers_something_is_found(
    make: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [make(tmp_path, kind, NAMED)])
    (found,) = plugins.installed("gnnstab.rules")
    assert plugins.origin(found) == "'own' (pkg:Rule) of pkg"


def test_where_nobody_offers_anything_the_packages_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [package(tmp_path, "dist-info", OTHER), str(tmp_path / "absent")])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])  # An editable install adds one that may know of packages too.
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda: pytest.fail("they were read"))
    assert plugins.installed("gnnstab.rules") == ()
