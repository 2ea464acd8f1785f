import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts/setup"


def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SETUP, *arguments], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}
    )


@pytest.fixture
def python(tmp_path):
    """An interpreter that is new enough but fails to import what its distribution packages apart."""

    def without(module: str) -> str:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\ncase "$*" in *{module}*) exit 1 ;; esac\n')
        path.chmod(0o755)
        return str(path)

    return without


def test_a_python_that_is_too_old_is_refused_with_advice(tmp_path, python):
    done = setup("--product", str(tmp_path / "venv"), PYTHON=python("version_info"))
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_python_without_venv_is_refused_with_advice(tmp_path, python):
    done = setup("--product", str(tmp_path / "venv"), PYTHON=python("venv"))
    assert done.returncode == 1
    assert "lacks its venv module" in done.stderr
    assert "python3-venv" in done.stderr


@pytest.mark.parametrize("arguments", [["--nope"], ["--product"]])
def test_a_wrong_option_prints_the_usage(arguments):
    done = setup(*arguments)
    assert done.returncode == 2
    assert "scripts/setup --interop" in done.stderr
