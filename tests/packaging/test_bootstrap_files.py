"""What an operator copies from ``bootstrap/`` fits the command line and the settings that it is for."""

import configparser
import shlex
from pathlib import Path

import pytest

from hivemind_p2p.cli import app as cli
from hivemind_p2p.config_sources import load_settings

ROOT = Path(__file__).parents[2]


def uncommented(text: str) -> str:
    """The file with its commented-out settings in force."""
    return "\n".join(line.removeprefix("# ") if " = [" in line else line for line in text.splitlines())


@pytest.mark.parametrize("change", [str, uncommented])
def test_the_example_configuration_loads(tmp_path, change):
    path = tmp_path / "node.toml"
    path.write_text(change((ROOT / "bootstrap/node.toml").read_text()))
    node = load_settings(environ={}, toml_path=path).node
    assert node.host_maddrs == ("/ip4/0.0.0.0/tcp/31337", "/ip6/::/tcp/31337")
    assert bool(node.initial_peers) == bool(node.announce_maddrs) == (change is uncommented)


@pytest.fixture
def unit():
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read(ROOT / "bootstrap/hivemind-p2p-bootstrap.service")
    return parser


def test_the_unit_keeps_the_identity_where_the_configuration_puts_it(unit):
    identity = load_settings(environ={}, toml_path=ROOT / "bootstrap/node.toml").node.identity_path
    assert identity.parent == Path("/var/lib", unit["Service"]["StateDirectory"])


def test_the_unit_makes_the_folder_that_the_configuration_answers_in(unit):
    directory = load_settings(environ={}, toml_path=ROOT / "bootstrap/node.toml").control.directory
    assert directory == Path("/run", unit["Service"]["RuntimeDirectory"])
    assert unit["Service"]["RuntimeDirectoryMode"] == "0700"


def test_the_unit_starts_a_command_that_exists(unit):
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == cli.PROGRAM
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--help"])
    assert exit_.value.code == 0
