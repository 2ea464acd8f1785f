"""The locks pin everything, and name no machine."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==[0-9][0-9a-z.]*( ; .+)?")


def pins(lock: str) -> set[str]:
    lines = (ROOT / "scripts/locks" / lock).read_text().splitlines()
    matches = [PIN.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {match["name"] for match in matches}


@pytest.mark.parametrize("lock", ["default.txt", "interop.txt"])
def test_every_line_is_a_pin_without_address_or_path(lock):
    assert "torch" in pins(lock)


def test_every_dependency_of_the_package_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} - {project["name"]}
    assert names <= pins("default.txt")


def test_js_libp2p_and_all_that_it_needs_is_pinned_without_an_address():
    folder = ROOT / "tests/interop/js"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    lock = (folder / "package-lock.json").read_text()
    packages = json.loads(lock)["packages"]
    assert wanted == {name: packages[f"node_modules/{name}"]["version"] for name in wanted}
    assert "resolved" not in lock
    assert all("integrity" in package for name, package in packages.items() if name)
