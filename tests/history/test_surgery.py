from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from extproc.history.surgery import Add, Edit, EditError, Put, Remove, edited, written

TEXT = """\
# What we serve.
tenants:
  - name: acme   # the first customer
    class: "premium"
    quota:
      requests_per_minute: 60   # as agreed
      burst: 0.5
    keys:
      # of the build
      - {sha256: aa, name: ci}
  # a comment between
  - name: globex
    keys: [{sha256: bb}]   # one
    quota: {requests_per_minute: 5, burst: 1.0}
  - keys:
    - sha256: cc
      name: x
    name: initech
"""
RPM = "requests_per_minute"


def changed(edit: Edit, text: str = TEXT) -> list[str]:
    """The lines that an edit takes out and puts in."""
    new = edited(text, [edit])
    before, after = text.splitlines(), new.splitlines()
    return [f"-{line}" for line in before if line not in after] + [
        f"+{line}" for line in after if line not in before
    ]


@pytest.mark.parametrize(
    ("edit", "lines"),
    [
        (
            Put(("tenants", 0, "quota", RPM), 100),
            ["-      requests_per_minute: 60   # as agreed", "+      requests_per_minute: 100   # as agreed"],
        ),
        (Put(("tenants", 0, "quota", "borrow"), 2.0), ["+      borrow: 2.0"]),
        (Put(("tenants", 0, "weight"), 2), ["+    weight: 2"]),
        (
            Put(("tenants", 1, "quota", "borrow"), 2),
            [
                "-    quota: {requests_per_minute: 5, burst: 1.0}",
                "+    quota: {borrow: 2, requests_per_minute: 5, burst: 1.0}",
            ],
        ),
        (
            Put(("tenants", 2, "quota", RPM), 7),
            ["-  - keys:", "+  - quota: {requests_per_minute: 7}"],
        ),
        (
            Put(("tenants", 1, "model_quotas", "org/m: 1", RPM), 7),
            ['+    model_quotas: {"org/m: 1": {requests_per_minute: 7}}'],
        ),
        (Remove(("tenants", 0, "quota", RPM)), ["-      requests_per_minute: 60   # as agreed"]),
        (
            Remove(("tenants", 1, "quota", "burst")),
            [
                "-    quota: {requests_per_minute: 5, burst: 1.0}",
                "+    quota: {requests_per_minute: 5}",
            ],
        ),
        (
            Remove(("tenants", 1, "quota", RPM)),
            ["-    quota: {requests_per_minute: 5, burst: 1.0}", "+    quota: {burst: 1.0}"],
        ),
        (Add(("tenants", 0, "keys"), {"sha256": "dd"}), ["+      - {sha256: dd}"]),
        (
            Add(("tenants", 1, "keys"), {"sha256": "dd"}),
            ["-    keys: [{sha256: bb}]   # one", "+    keys: [{sha256: dd}, {sha256: bb}]   # one"],
        ),
        (
            Put(("tenants", 1, "keys", 0, "revoked"), True),
            ["-    keys: [{sha256: bb}]   # one", "+    keys: [{revoked: true, sha256: bb}]   # one"],
        ),
        (Put(("tenants", 2, "keys", 0, "revoked"), True), ["+      revoked: true"]),
        (Put(("pools",), []), ["+pools: []"]),
    ],
)
def test_an_edit_touches_its_lines_alone(edit: Edit, lines: list[str]) -> None:
    """Comments, order and spelling of everything else stay."""
    assert sorted(changed(edit)) == sorted(lines)


def test_the_last_of_a_quota_goes_with_it() -> None:
    """An empty section would be a mistake in the file."""
    text = edited(TEXT, [Remove(("tenants", 0, "quota", RPM)), Remove(("tenants", 0, "quota", "burst"))])
    assert "quota" not in yaml.safe_load(text)["tenants"][0]
    assert "# of the build" in text
    text = edited(TEXT, [Remove(("tenants", 1, "quota", RPM)), Remove(("tenants", 1, "quota", "burst"))])
    assert "quota" not in yaml.safe_load(text)["tenants"][1]


@pytest.mark.parametrize(
    "text", ["tenants: [{name: a, quota: }]", "tenants:\n- name: a\n  quota:\n", "tenants:\n- name: a"]
)
def test_missing_and_empty_sections_are_made(text: str) -> None:
    """Whatever stood there for nothing."""
    new = edited(text, [Put(("tenants", 0, "quota", RPM), 1), Add(("tenants", 0, "keys"), {"sha256": "é"})])
    assert yaml.safe_load(new) == {"tenants": [{"name": "a", "quota": {RPM: 1}, "keys": [{"sha256": "é"}]}]}


@pytest.mark.parametrize(
    "text",
    [
        "tenants:\n- name: a\n  quota: &q {burst: 1}\n- name: b\n  quota: *q\n",
        "base: &b {burst: 1}\ntenants:\n- name: a\n- name: b\n  quota: *b\n",
    ],
)
def test_what_is_shared_is_left_to_a_person(text: str) -> None:
    """An edit of an alias would change what somebody else has."""
    with pytest.raises(EditError, match=r"tenants\[1\].quota.burst"):
        edited(text, [Put(("tenants", 1, "quota", "burst"), 0.5)])


def test_a_merged_setting_is_overridden_but_not_removed() -> None:
    """It stands elsewhere."""
    text = "base: &b {burst: 1}\ntenants:\n- name: a\n  quota:\n    <<: *b\n    borrow: 2\n"
    new = edited(text, [Put(("tenants", 0, "quota", "burst"), 0.5)])
    assert yaml.safe_load(new)["tenants"][0]["quota"] == {"burst": 0.5, "borrow": 2}
    with pytest.raises(EditError):
        edited(text, [Remove(("tenants", 0, "quota", "burst"))])


@pytest.mark.parametrize(
    "path", [("tenants", 9, "name"), ("tenants", "name"), ("tenants", 0, "nothing", "x")]
)
def test_what_is_not_there_is_not_removed(path: tuple[str | int, ...]) -> None:
    """It says where."""
    with pytest.raises(EditError, match="by hand"):
        edited(TEXT, [Remove(path)])


@pytest.mark.parametrize(
    "value",
    [
        "no",
        "1e5",
        "12e34",
        "a: b",
        "ci",
        "a\nb",
        "é \U0001f600",
        "2026-01-01",
        "",
        True,
        7,
        0.1,
        1e22,
        datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC),
        {"a b": [1, {"c": "null"}]},
    ],
)
def test_values_read_as_they_were_meant(value: object) -> None:
    """YAML takes many texts for something else."""
    assert yaml.safe_load(written(value)) == value


def test_the_examples_can_be_edited() -> None:
    """A quota and a key for every tenant of the files that we ship, line ends of Windows too."""
    for path in (Path(__file__).parents[2] / "envoy" / "examples").glob("*.yaml"):
        for text in (
            path.read_text(encoding="utf-8"),
            path.read_text(encoding="utf-8").replace("\n", "\r\n"),
        ):
            data = yaml.safe_load(text)
            for i in range(len(data.get("tenants", []))):
                edits = [Put(("tenants", i, "quota", RPM), 3), Add(("tenants", i, "keys"), {"sha256": "a"})]
                assert yaml.safe_load(edited(text, edits))["tenants"][i]["quota"][RPM] == 3
