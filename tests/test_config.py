"""Configuration: where it is found, what it may say, and how mistakes are told."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

import examples
from effort import within
from gnnstab.config import Settings, Suppression, accept, load
from gnnstab.config.validating import validate
from gnnstab.errors import ConfigurationError, UsageError

TOML = """
[project]
name = "theirs"

[tool.gnnstab]
select = ["GS3", "gs401"]
ignore = ["GS303"]
fail-on = "error"
format = "markdown"
baseline = "known.json"
docs-url = "https://docs.example.org"

[tool.gnnstab.thresholds.GS301]
warn_entropy = 0.3

[tool.gnnstab.layers."encoder.*".GS301]
warn_entropy = 0.2

[[tool.gnnstab.suppressions]]
code = "GS301"
layer = "decoder.*"
reason = "copies one neighbour on purpose"
expires = 2030-01-31
"""

INI = """
[metadata]
name = theirs

[gnnstab]
select = GS3, gs401
ignore = GS303
fail-on = error
format = markdown
baseline = known.json
docs-url = https://docs.example.org

[gnnstab:thresholds:GS301]
warn_entropy = 0.3

[gnnstab:layers:encoder.*:GS301]
warn_entropy = 0.2

[gnnstab:suppression:copy]
code = GS301
layer = decoder.*
reason = copies one neighbour on purpose
expires = 2030-01-31
"""


@pytest.mark.parametrize(("name", "content"), [("pyproject.toml", TOML), ("setup.cfg", INI)])
def test_both_files_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    settings = validate(load(tmp_path))
    assert settings.select == ("GS3", "GS401")
    assert settings.ignore == ("GS303",)
    assert settings.fail_on == "error"
    assert settings.format == "markdown"
    assert settings.baseline == str(tmp_path / "known.json")
    assert settings.docs_url == "https://docs.example.org"
    assert settings.thresholds == {"GS301": {"warn_entropy": 0.3}}
    (override,) = settings.overrides()
    assert (override.layer, override.code, override.thresholds) == ("encoder.*", "GS301", {"warn_entropy": 0.2})
    assert settings.suppressions == (
        Suppression("GS301", "copies one neighbour on purpose", "decoder.*", date(2030, 1, 31), str(tmp_path / name)),
    )
    assert settings.origin("fail_on") == str(tmp_path / name)


def test_the_nearest_folder_upward_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.gnnstab]\nfail-on = "error"\n')
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert load(inner).fail_on == "error"
    (tmp_path / "a" / "setup.cfg").write_text("[gnnstab]\nfail-on = info\n")
    assert load(inner).fail_on == "info"


def test_the_search_ends_at_the_root_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.gnnstab]\nfail-on = "error"\n')
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    assert load(tmp_path / "repository").fail_on == "warning"


def test_both_files_of_one_folder_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(TOML)
    (tmp_path / "setup.cfg").write_text(INI)
    with pytest.raises(ConfigurationError, match=r"both pyproject.toml \[tool.gnnstab\] and setup.cfg \[gnnstab\]"):
        load(tmp_path)


def test_isolated_and_a_named_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(TOML)
    assert load(tmp_path, isolated=True) == Settings()
    other = tmp_path / "strict.toml"
    other.write_text('[tool.gnnstab]\nfail-on = "info"\n')
    assert load(tmp_path, file=other).fail_on == "info"
    with pytest.raises(ConfigurationError, match="exclude each other"):
        load(tmp_path, file=other, isolated=True)
    other.write_text("[tool.black]\n")
    with pytest.raises(ConfigurationError, match=r"no section \[tool.gnnstab\]"):
        load(tmp_path, file=other)
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path, file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('fail_on = "error"', "unknown key 'fail_on'; did you mean 'fail-on'?"),
        ("colour = 1", "unknown key 'colour'; known are select, ignore"),
        ('fail-on = "fatal"', "fail-on must be one of info, warning, error, not 'fatal'"),
        ("select = 3", "select must be a list of rule codes"),
        ("select = [3]", "select must be a list of rule codes"),
        ('docs-url = "docs/"', "docs-url must be an address such as https://docs.example.org/gnnstab, not 'docs/'"),
        ('format = ""', "format must be a text"),
        ("thresholds = 1", "thresholds must be a table"),
        ("thresholds.GS301 = 1", "thresholds.GS301 must be a table"),
        ('thresholds.GS301.warn_entropy = "much"', "thresholds.GS301.warn_entropy must be a number, not 'much'"),
        ("thresholds.GS301.warn_entropy = true", "must be a number, not True"),
        *((f"thresholds.GS301.warn_entropy = {x}", "must be finite; with") for x in ("nan", "-inf", "inf", "1e999")),
        ("layers.'*'.GS605.error_rms = inf", "must be finite; with inf"),
        ('suppressions = "GS301"', "suppressions must be a list of tables"),
        ('suppressions = [{code = "GS301"}]', "suppression 1 has no reason"),
        ('suppressions = [{code = "GS301", reason = "  "}]', "suppression 1 has no reason"),
        ('suppressions = [{reason = "x"}]', "code must be a text, not None"),
        ('suppressions = [{code = "GS301", reason = "x", until = "y"}]', "unknown key 'until'"),
        ('suppressions = [{code = "GS301", reason = "x", expires = "soon"}]', "must be a day such as 2026-12-31"),
        ("select = [", "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, section: str, message: str) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[tool.gnnstab]\n{section}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[gnnstab]\nselect = GS3\n[gnnstab:nonsense:x]\na = 1\n", "is no section of gnnstab"),
        ("[gnnstab]\nselect = GS3\nselect = GS4\n", "already exists"),
        ("[gnnstab:thresholds:GS301]\nwarn_entropy = a lot\n", "must be a number"),
    ],
)
def test_mistakes_in_an_ini_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "setup.cfg").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe[tool.gnnstab]", b"[tool.gnnstab]\nx = " + b"[" * 100_000])
def test_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(ConfigurationError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(select=("GX",)), "select: no rule code begins with 'GX'"),
        (Settings(thresholds={"GS999": {}}), "there is no rule 'GS999'"),
        (Settings(thresholds={"GS301": {"warn": 1.0}}), "GS301 has no threshold 'warn'"),
        (Settings(layers={"a.*": {"GS301": {"warn": 1.0}}}), r"layers.a.*: GS301 has no threshold 'warn'"),
        (Settings(format="pdf"), "unknown format 'pdf'"),
        (Settings(suppressions=(Suppression("GX1", "why"),)), "no rule code begins with 'GX1'"),
    ],
)
def test_codes_thresholds_and_formats_must_exist(settings: Settings, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        validate(settings)
    assert message in str(caught.value)


def test_the_command_line_wins_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(TOML)
    settings = load(tmp_path).override("command line", fail_on="info", select=None)
    assert (settings.fail_on, settings.origin("fail_on")) == ("info", "command line")
    assert settings.origin("select").endswith("pyproject.toml")
    assert settings.origin("nothing") == "default"
    with pytest.raises(UsageError):
        settings.override("command line", fail_on="fatal")


TODAY = date(2026, 6, 1)


def test_a_suppression_takes_findings_out_and_keeps_the_reason() -> None:
    rule = Suppression("GS301", "sharp by design", "gnn_base.*", TODAY, "pyproject.toml")
    result = accept([examples.one_finding()], [rule], TODAY)
    diagnosis = result.diagnoses[0]
    assert diagnosis.findings == ()
    assert diagnosis.suppressed[0].reason == "sharp by design"
    assert diagnosis.exit_code() == 0
    assert result.complaints == ()
    assert {r.code: r.status for r in diagnosis.rules}["GS301"] == "suppressed"


def test_an_expired_suppression_is_reported_and_does_nothing() -> None:
    rule = Suppression("GS301", "sharp by design", "*", date(2026, 5, 31), "f")
    result = accept([examples.one_finding()], [rule], TODAY)
    assert result.diagnoses[0].exit_code() == 1
    assert result.complaints == ("suppression of GS301 at layer * in f expired on 2026-05-31; remove it or renew it",)


def test_an_unused_suppression_is_reported_once_for_all_targets() -> None:
    rules = [Suppression("GS4", "x", "*", None, "f"), Suppression("GS301", "y", "gnn_base.gnn.gnn1", None, "f")]
    result = accept([examples.clean(), examples.one_finding()], rules, TODAY)
    assert result.complaints == ("suppression of GS4 at layer * in f matched nothing; remove it",)


def test_many_suppressions_are_compiled_once_and_told_by_their_count() -> None:
    rules = [Suppression("GS", "x", f"*[!a]*{i}*x", None, "f") for i in range(1000)]
    diagnosis = examples.one_finding()
    with within(1.5):
        result = accept([diagnosis] * 50, rules, TODAY)
    *first, last = result.complaints
    assert len(first) == 20 and all("matched nothing" in line for line in first)
    assert last == "980 more suppressions have expired or matched nothing; remove them"


@pytest.mark.parametrize("many", [2000, 2001])
def test_suppressions_and_layers_are_limited(many: int, tmp_path: Path) -> None:
    tables = {
        "suppressions": ",".join(f'{{code="G{i}",reason="r"}}' for i in range(many)),
        "layers": ",".join(f'"l{i}"={{GS301={{limit=1}}}}' for i in range(many)),
    }
    for name, table in tables.items():
        brackets = "[]" if name == "suppressions" else "{}"
        (tmp_path / "pyproject.toml").write_text(f"[tool.gnnstab]\n{name}={brackets[0]}{table}{brackets[1]}\n")
        if many == 2000:
            assert len(getattr(load(tmp_path), name)) == many
        else:
            with pytest.raises(ConfigurationError, match=f"{name} has 2001 entries; at most 2000"):
                load(tmp_path)


def test_other_layers_stay() -> None:
    many = examples.many_findings()
    result = accept([many], [Suppression("GS301", "x", "encoder.blocks.0.*", None, "f")], TODAY)
    left = {f.layer for f in result.diagnoses[0].findings if f.code == "GS301"}
    assert left == {f"encoder.blocks.{i}.attention" for i in range(1, 6)}
    assert {r.code: r.status for r in result.diagnoses[0].rules}["GS301"] == "fired"
