from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind_p2p.config import Settings
from hivemind_p2p.config_sources import load_settings
from hivemind_p2p.errors import ConfigError

VARIABLE = "HIVEMIND_P2P_NODE__HOST_MADDRS"


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write


def test_without_sources_every_setting_has_its_default():
    assert load_settings(environ={"PATH": "/bin"}) == Settings()


def test_every_setting_can_be_given_what_it_is_by_default():
    defaults = {
        f"{concern.name}.{setting.name}": getattr(getattr(Settings(), concern.name), setting.name)
        for concern in fields(Settings)
        for setting in fields(getattr(Settings(), concern.name))
    }
    assert "node.host_maddrs" in defaults
    assert load_settings(defaults, environ={}) == Settings()


def test_the_command_line_wins_over_the_environment_over_the_file(toml):
    path = toml(
        '[node]\nhost_maddrs = ["/ip4/1.1.1.1/tcp/1"]\nidentity_path = "id"\nannounce_maddrs = ["/dns/a/tcp/1"]'
    )
    environ = {VARIABLE: "/ip4/2.2.2.2/tcp/2", "HIVEMIND_P2P_NODE__ANNOUNCE_MADDRS": "/dns/b/tcp/2"}
    node = load_settings({"node.host_maddrs": ["/ip4/3.3.3.3/tcp/3"]}, environ=environ, toml_path=path).node
    assert node.host_maddrs == ("/ip4/3.3.3.3/tcp/3",)
    assert node.announce_maddrs == ("/dns/b/tcp/2",)
    assert node.identity_path == Path("id")


@given(st.lists(st.text("abc/0123456789.", min_size=1), max_size=5), st.sampled_from([" ", ",", ", "]))
def test_a_sequence_in_the_environment_is_separated_by_spaces_or_commas(items, separator):
    assert load_settings(environ={VARIABLE: separator.join(items)}).node.host_maddrs == tuple(items)


def test_none_can_be_said_in_the_environment(toml):
    path = toml('[node]\nidentity_path = "id"')
    environ = {"HIVEMIND_P2P_NODE__IDENTITY_PATH": "none"}
    assert load_settings(environ=environ, toml_path=path).node.identity_path is None


@pytest.mark.parametrize(
    ("environ", "text", "message"),
    [
        (
            {"HIVEMIND_P2P_NODE__HOST_MADDR": "x"},
            "",
            r"HIVEMIND_P2P_NODE__HOST_MADDR: .*did you mean 'node.host_maddrs'",
        ),
        ({"HIVEMIND_P2P_HOST_MADDRS": "x"}, "", r"HIVEMIND_P2P_HOST_MADDRS: .*'host_maddrs'"),
        ({}, "[nodes]\nx = 1", r"node.toml: there is no table \[nodes\]; did you mean 'node'"),
        ({}, "host_maddrs = []", r"node.toml: there is no table \[host_maddrs\]"),
        (
            {},
            "[node]\nhost_madrs = []",
            r"node.toml: there is no setting 'node.host_madrs'; did you mean 'node.host_maddrs'",
        ),
        ({}, "[node]\nhost_maddrs = 3", r"node.toml: node.host_maddrs = 3 is not a list"),
        ({}, "[node]\nhost_maddrs = [3]", r"node.toml: node.host_maddrs = \[3\] is not text"),
        ({}, "[node]\nidentity_path = 3", r"node.toml: node.identity_path = 3 is not a path"),
        ({}, "[node\n", r"node.toml is not TOML"),
        ({"HIVEMIND_P2P_NODE__IDENTITY_PATH": "~nobody-of-this-name/key"}, "", r"identity_path = .* is not a path"),
        (
            {"HIVEMIND_P2P_TRANSPORT__DIAL_TIMEOUT": "nan"},
            "",
            r"DIAL_TIMEOUT: transport.dial_timeout must be above zero",
        ),
        ({}, "[hosting]\nlr = nan", r"node.toml: lr = nan must be above 0"),
        ({}, "[hosting]\nbatch_wait_timeout_s = nan", r"node.toml: batch_wait_timeout_s = nan must be at least 0"),
    ],
)
def test_a_mistake_is_named_with_its_source(toml, environ, text, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(environ=environ, toml_path=toml(text))


def test_an_unknown_override_is_named_as_its_option():
    with pytest.raises(ConfigError, match=r"--colour: there is no setting 'node.colour'"):
        load_settings({"node.colour": "red"}, environ={})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*absent.toml: No such file"):
        load_settings(environ={}, toml_path=tmp_path / "absent.toml")
