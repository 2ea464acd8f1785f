"""The Dockerfile, the compose file and the README's Docker lines agree with each other and with the command line."""

import json
import re
import shlex
from pathlib import Path

import pytest

from hivemind_p2p.cli import app as cli
from hivemind_p2p.config_sources import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = (ROOT / "bootstrap/compose.yaml").read_text()
README = (ROOT / "README.md").read_text()


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, flags=re.MULTILINE)


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))


def parse(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--help"])
    return exit_.value.code


def test_its_environment_is_known_settings():
    node = load_settings(environ=environment()).node
    assert node.host_maddrs[0].endswith("/tcp/" + instructions("EXPOSE")[0])
    assert [str(node.identity_path.parent)] == instructions("VOLUME")


def test_it_runs_commands_that_exist():
    program, *health = json.loads(re.search(r"CMD (\[.+\])", instructions("HEALTHCHECK")[0])[1])
    assert [program] == json.loads(instructions("ENTRYPOINT")[0]) == [cli.PROGRAM]
    assert parse(*health) == 0
    assert parse(*json.loads(re.search(r"command: (\[.+\])", COMPOSE)[1])) == 0


def test_it_does_not_run_as_root():
    assert instructions("USER") == ["node"]
    assert DOCKERFILE.index("USER node") < DOCKERFILE.index("ENTRYPOINT")


def test_what_it_copies_is_there_and_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)


def test_build_arguments_that_others_give_are_its_own():
    arguments = {line.split("=")[0] for line in instructions("ARG")}
    assert arguments == {"BASE_IMAGE", "EXTRAS"}
    assert set(re.findall(r"--build-arg (\w+)=", README)) <= arguments
    assert "EXTRAS:" in COMPOSE


def test_environment_that_others_give_is_known():
    given = dict(re.findall(r"(HIVEMIND_P2P_\w+)(?:=|: )([^\s.)`]+)", README + COMPOSE))
    assert {"HIVEMIND_P2P_NODE__HOST_MADDRS", "HIVEMIND_P2P_NODE__ANNOUNCE_MADDRS"} <= set(given)
    load_settings(environ=given)


def test_the_readme_runs_verbs_of_the_image_with_options_they_have():
    lines = [line for line in README.splitlines() if line.startswith("docker run")]
    assert len(lines) == 2
    for line in lines:
        _, _, command = line.partition(" hivemind-p2p ")
        assert parse(*shlex.split(command)) == 0
