"""installed.py: what a file asks for and this environment lacks is said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from extproc import extras
from extproc.cli import group
from extproc.config.installed import lacking
from extproc.config.load import Problem, loads

BASE = "gateway: {auth: none}\npools: [{name: a, models: [m], endpoints: [{address: '127.0.0.1:9'}]}]\n"
ASKING = {
    "redis": ("sharing", "sharing: {redis: 'redis://127.0.0.1:1/0'}\n"),
    "otel": ("otel", "otel: {endpoint: 'http://127.0.0.1:4317'}\n"),
    "encryption": (
        "cache.keys",
        "sharing: {redis: 'redis://127.0.0.1:1/0'}\ncache: {store: redis, keys_file: /etc/keys}\n",
    ),
    "semantic": (
        "tenants[acme].cache.semantic",
        "cache: {}\ntenants: [{name: acme, cache: {mode: 'on', semantic: {}}}]\n",
    ),
}


@pytest.mark.parametrize("extra", list(ASKING))
def test_check_names_an_extra_that_is_not_here(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning: the file may be good where it runs. Nothing where the extra is installed."""
    path, text = ASKING[extra]
    file = tmp_path / "steersman.yaml"
    file.write_text(BASE + text, encoding="utf-8")
    monkeypatch.setattr(extras, "missing", lambda name: name == extra)
    result = CliRunner().invoke(group, ["check", "-f", str(file)])
    assert result.exit_code == 0, result.stderr
    assert f"{file}: warning: {path}: it needs the extra '{extra}': pip install" in result.stderr
    monkeypatch.setattr(extras, "missing", lambda _: False)
    assert "needs the extra" not in CliRunner().invoke(group, ["check", "-f", str(file)]).stderr


def test_who_asks_for_nothing_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base serves one gateway from a file."""
    monkeypatch.setattr(extras, "missing", lambda _: True)
    assert list(lacking(loads(BASE))) == []


def test_a_problem_of_no_file_begins_with_its_setting() -> None:
    """As docs/install.md shows it."""
    assert str(Problem("", None, "sharing", "it needs x")) == "sharing: it needs x"
