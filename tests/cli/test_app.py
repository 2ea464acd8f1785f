import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p import __version__
from hivemind_p2p.cli import app as cli
from hivemind_p2p.errors import BootstrapError, ConfigError

WITHOUT_LISTS = st.lists(st.sampled_from(["server", "--hidden-dim", "64", "-v", "--lr=1", "-", "--json"]))


@pytest.mark.parametrize(
    ("given_arguments", "arguments"),
    [
        (
            ["--expert-uids", "a", "b", "c", "--json"],
            ["--expert-uids", "a", "--expert-uids", "b", "--expert-uids", "c", "--json"],
        ),
        (["--expert-uids=a", "b"], ["--expert-uids=a", "--expert-uids", "b"]),
        (["--expert_uids", "a", "b"], ["--expert-uids", "a", "--expert-uids", "b"]),
        (["--hidden_dim=a_b"], ["--hidden-dim=a_b"]),
        (["ping", "address"], ["ping", "address"]),
    ],
)
def test_values_of_a_list_may_follow_one_option(given_arguments, arguments):
    assert list(cli.repeat_options(given_arguments)) == arguments


@given(WITHOUT_LISTS)
def test_other_arguments_are_left_alone(arguments):
    assert list(cli.repeat_options(arguments)) == arguments


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return exit_.value.code


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"hivemind-p2p {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["server", "--colour"], ["serve"], ["server", "--lr", "fast"], ["ping", "a", "b"]]
)
def test_a_wrong_option_exits_with_2_and_points_to_help(capsys, arguments):
    assert run(*arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_an_error_of_ours_is_one_message_and_exit_1(capsys, tmp_path):
    assert run("bootstrap", "--config", str(tmp_path / "absent.toml")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hivemind-p2p: cannot read the configuration file")
    assert "Traceback" not in captured.err


def test_a_setting_that_does_not_fit_is_named_as_its_option(capsys):
    assert run("server", "--max-batch-size", "-3") == 1
    assert "--max-batch-size: max_batch_size = -3 must be above 0" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch):
    def fail_with(error: BaseException) -> None:
        app = typer.Typer()

        @app.callback(invoke_without_command=True)
        def verb() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)
        app.pretty_exceptions_enable = False

    return fail_with


def test_errors_that_come_as_a_group_are_told_one_by_one(capsys, failing):
    inner = ExceptionGroup("tasks", [ConfigError("second")])
    failing(ExceptionGroup("tasks", [BootstrapError("first"), inner]))
    assert run() == 1
    assert capsys.readouterr().err == "hivemind-p2p: first\nhivemind-p2p: second\n"


def test_a_defect_of_the_program_is_not_hidden(failing):
    failing(ExceptionGroup("tasks", [ConfigError("mistake"), ZeroDivisionError("defect")]))
    with pytest.raises(ExceptionGroup) as raised:
        cli.main([])
    assert raised.group_contains(ZeroDivisionError, match="defect")


@pytest.mark.parametrize("verb", [[], ["bootstrap"], ["server"], ["ping"]])
def test_help_loads_neither_torch_nor_libp2p(verb):
    program = f"""
import sys
from hivemind_p2p.cli import main
try:
    main({[*verb, "--help"]})
finally:
    print("loaded", sorted({{"torch", "libp2p", "trio"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: hivemind-p2p" in done.stdout
    assert done.stdout.endswith("loaded []\n")


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "hivemind_p2p", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"hivemind-p2p {__version__}\n"
