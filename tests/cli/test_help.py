"""The command line as a whole: fast help, examples that are right, one way to say things."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from extproc.cli import COMMANDS, GROUPS, group
from extproc.cli.options import EXIT_CODES, examples

#: What `--help` must not pay for.
HEAVY = ("pydantic", "grpc", "rich", "yaml", "envoy_data_plane", "msgspec", "aiohttp", "redis", "optuna")
#: Commands that run until they are ended, print something that is no JSON, or have a format of their own.
WITHOUT_JSON = {
    *("up", "serve", "demo", "sim-replica", "top", "completion", "envoy-config", "alerts export"),
}


def commands(
    command: click.Command = group, names: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand with its names."""
    if names:
        yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*names, name))


ALL = [pytest.param(names, command, id=" ".join(names)) for names, command in commands()]
LEAVES = [each for each in ALL if not isinstance(each.values[1], click.Group) or each.values[0] == ("fleet",)]


def test_help_imports_nothing_heavy() -> None:
    """`steersman --help` is a moment's matter: none of the commands' modules is loaded."""
    script = (
        "import sys\n"
        "from extproc.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    loaded = set(done.stderr.split())
    assert not loaded & set(HEAVY)
    ours = {each for each in loaded if each.startswith("extproc.") and not each.startswith("extproc.cli")}
    assert ours <= {"extproc.extras"}  # what a missing extra says, around every command
    assert "Run:" in done.stdout


def test_every_command_stands_under_one_heading() -> None:
    """Nothing is left for "Other", and nothing is named that is not there."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)


@pytest.mark.parametrize(("names", "command"), ALL)
def test_every_command_teaches(names: tuple[str, ...], command: click.Command) -> None:
    """A first line, then what it does; examples that name it; every option with its words."""
    help_ = (command.help or "").strip()
    first, _, rest = help_.partition("\n\n")
    assert first.endswith("."), first
    assert len(first.splitlines()) <= 2
    assert command.epilog, "give it `epilog=examples(…)`"
    assert "Examples:" in command.epilog
    assert f"steersman {' '.join(names)}" in command.epilog
    assert rest or isinstance(command, click.Group) or len(first) > 60, "say more than a line"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name


@pytest.mark.parametrize(("names", "command"), ALL)
def test_examples_have_only_options_that_there_are(names: tuple[str, ...], command: click.Command) -> None:
    """Each example's words are parsed against the command that it calls."""
    assert command.epilog
    text = command.epilog.replace("\\\n", " ")
    for line in text.splitlines():
        for call in line.partition("  # ")[0].split("|")[0].split("&&"):
            words = shlex.split(
                call.partition("> ")[0].replace('eval "$(', "").replace(')"', "").replace("…", "x")
            )
            if words[:1] != ["steersman"]:
                continue
            found, options = _resolved(words[1:])
            known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
            known |= {option for parameter in found.params for option in parameter.secondary_opts}
            assert {option.partition("=")[0] for option in options} <= known, call


def _resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words call, and the options among them."""
    command: click.Command = group
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            break
        command, words = found, words[1:]
    return command, [
        word for word in words if word.startswith("-") and not word.lstrip("-+").isdigit() and word != "-"
    ]


@pytest.mark.parametrize(("names", "command"), LEAVES)
def test_json_is_asked_for_in_one_way(names: tuple[str, ...], command: click.Command) -> None:
    """`--json` wherever there is something to read by a program."""
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) == (" ".join(names) not in WITHOUT_JSON), names


@pytest.mark.parametrize(("names", "command"), LEAVES)
def test_wrong_usage_is_exit_2_on_stderr(names: tuple[str, ...], command: click.Command) -> None:
    """An option that there is none of."""
    result = CliRunner().invoke(group, [*names, "--no-such-option"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--no-such-option" in result.stderr


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR in the environment takes the colours from what click prints, terminal or not."""

    @click.command()
    def coloured() -> None:
        click.secho("x", fg="red")

    monkeypatch.setattr(type(group), "get_command", lambda *_: coloured)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in CliRunner().invoke(group, ["coloured"], color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert CliRunner().invoke(group, ["coloured"], color=True).stdout == "x\n"


def test_the_exit_codes_are_three() -> None:
    """What docs/cli.md says; scripts rely on them."""
    assert sorted(EXIT_CODES) == [0, 1, 2]
    assert examples("a", "b") == "\b\nExamples:\n  a\n  b"


def mistyped(name: str) -> str:
    """A name with its last two letters the other way round, or one too many."""
    return name[:-2] + name[-1] + name[-2] if name[-1] != name[-2] else name + name[-1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if len(name) > 2])
def test_a_mistyped_command_is_told_with_the_nearest(name: str) -> None:
    """At the top as below it, although no command is loaded then."""
    result = CliRunner().invoke(group, [mistyped(name)])
    assert result.exit_code == 2
    assert f"No such command {mistyped(name)!r}" in result.stderr
    assert f"'{name}'" in result.stderr.partition("Did you mean")[2]


def test_a_word_like_no_command_has_no_nearest() -> None:
    """Nothing is made up."""
    result = CliRunner().invoke(group, ["xyzzy"])
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr


TAKES_FILE = [
    pytest.param(each.values[0], id=each.id)
    for each in LEAVES
    if any(option.name == "file" and "-f" in option.opts for option in each.values[1].params)
    and not any(isinstance(argument, click.Argument) for argument in each.values[1].params)
]


@pytest.mark.parametrize("names", TAKES_FILE)
def test_a_file_without_its_option_is_told_the_option(names: tuple[str, ...]) -> None:
    """`steersman check my.yaml` is what most would write first."""
    result = CliRunner().invoke(group, [*names, "my.yaml"])
    assert result.exit_code == 2
    assert "unexpected extra argument (my.yaml); name the file with -f my.yaml" in result.stderr


def test_there_are_commands_that_take_a_file() -> None:
    """So that the test above is one."""
    assert {("check",), ("up",), ("serve",), ("doctor",)} <= {each.values[0] for each in TAKES_FILE}


@pytest.mark.parametrize(
    "arguments",
    [
        [b"tenant", b"set", b"acme", b"--weight", b"2", b"--why", b"f\xfcr"],
        [b"init", b"127.0.0.1:9", b"-o", b"f\xfcr.yaml"],
        [b"tenant", b"key", b"new", b"acme", b"--name", b"f\xfcr", b"--why", b"x"],
    ],
    ids=["set", "init", "new"],
)
def test_an_argument_that_is_not_utf_8_is_said_in_one_line(arguments: list[bytes]) -> None:
    """Such as from a terminal in Latin-1; it could be written nowhere."""
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"extproc.start", *arguments],
        capture_output=True,
        check=False,
        timeout=60,
    )
    [wrong] = [each.decode(errors="replace") for each in arguments if b"\xfc" in each]
    way = "write it so, in a locale of UTF-8 (LC_ALL=C.UTF-8)"
    assert (done.returncode, done.stderr.decode()) == (2, f"'{wrong}' is not UTF-8; {way}\n")


def test_up_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    """The service could not be told of it: one line, before anything is started."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr"))
    folder.mkdir()
    pool = "{name: a, models: [m], endpoints: [{address: '127.0.0.1:9'}]}"
    (folder / "steersman.yaml").write_text(f"gateway: {{auth: none}}\npools: [{pool}]\n", encoding="utf-8")
    argv = [sys.executable, "-m", "extproc.start", "up"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert "/steersman.yaml: the folder's name is not UTF-8; rename it, or set a locale of UTF-8" in line
