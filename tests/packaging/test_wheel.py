"""What ``pip install`` gets."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    [path] = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_it_holds_the_typed_package_and_nothing_else(wheel):
    names = wheel.namelist()
    assert "hivemind_p2p/py.typed" in names
    assert "hivemind_p2p/__main__.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hivemind_p2p"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_it_installs_the_command(wheel):
    assert dist_info(wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "hivemind-p2p",
        "=",
        "hivemind_p2p.cli:main",
    ]


def test_torch_comes_with_an_extra_only(wheel):
    metadata = Parser().parsestr(dist_info(wheel, "METADATA"))
    requirements = metadata.get_all("Requires-Dist")
    assert set(metadata.get_all("Provides-Extra")) == {"torch", "schema", "plots", "demo", "test"}
    torch = [requirement for requirement in requirements if requirement.startswith("torch")]
    assert torch
    assert all("extra ==" in requirement for requirement in torch)
