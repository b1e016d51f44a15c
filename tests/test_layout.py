"""The layout of the repository hides nothing from transformers, and untried versions of it are refused."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from detjac_lanczos import _requirements

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, cwd: Path, path: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": str(cwd)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_transformers_imports_where_the_root_is_on_the_path_and_the_package_from_elsewhere(tmp_path: Path) -> None:
    modules = "from transformers import LlamaForCausalLM\n"
    if find_spec("bitsandbytes"):
        modules += "import bitsandbytes\n"
    for imports, cwd, path in ((modules, ROOT, str(ROOT)), ("", tmp_path, "")):
        done = run(imports + "import detjac_kernels, detjac_lanczos", cwd, path)
        assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    code = "import sys, detjac_lanczos; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert run(code, tmp_path).stdout == "[]\n"


@pytest.mark.parametrize("package", ["detjac_lanczos", "detjac_lanczos.runs"])
def test_public_names_are_listed_before_they_are_imported(package: str, tmp_path: Path) -> None:
    code = f"import sys, {package} as it; print(set(it.__all__) - set(dir(it)), 'torch' in sys.modules)"
    assert run(code, tmp_path, str(ROOT)).stdout == "set() False\n"


@pytest.mark.parametrize("version", ["4.57.1", "5.22.0", "6.0.0"])
def test_untried_versions_of_transformers_are_refused_at_import(version: str, tmp_path: Path) -> None:
    folder = tmp_path / "site" / f"transformers-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    done = run("import detjac_lanczos", tmp_path, str(folder.parent))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"transformers {version} is installed, detjac_lanczos needs transformers<6,>=5.23; install one with" in last


VERSIONS = {
    "2.12.1": "return '2.12.1'",
    "main": "return 'main'",
    "not installed": "raise metadata.PackageNotFoundError(name)",
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_program_refuses_them_in_one_line(version: str, tmp_path: Path) -> None:
    """Run what installers make of the entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["detjac"].split(":")
    found = f"from importlib import metadata\ndef version(name):\n    {VERSIONS[version]}\nmetadata.version = version\n"
    program = f"import sys\nfrom {module} import {function}\nsys.argv = ['detjac', '--version']\nsys.exit({function}())"
    done = run(found + program, tmp_path, str(ROOT))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("detjac: torch ") and version in done.stderr and "pip install" in done.stderr
    done = run(program, tmp_path, str(ROOT))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("detjac-lanczos ")


@pytest.mark.parametrize("version", VERSIONS)
def test_so_does_the_package_run_as_a_module(version: str, tmp_path: Path) -> None:
    """And only then: what imports the package gets the error."""
    (tmp_path / "sitecustomize.py").write_text(
        f"from importlib import metadata\ndef version(name):\n    {VERSIONS[version]}\nmetadata.version = version\n"
    )
    (tmp_path / "other.py").write_text("import detjac_lanczos")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'kernels'}"}
    for module, code, lines in (("detjac_lanczos", 2, 1), ("other", 1, 5)):
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=False)
        assert done.returncode == code and done.stdout == "" and version in done.stderr
        assert (done.stderr.startswith("detjac: torch "), done.stderr.count("\n") >= lines) == (code == 2, True)
        assert ("Traceback" in done.stderr) == (code == 1)


def test_a_version_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(SpecifierSet):
        """That of packaging before 26."""

        def contains(self, item: Any, prereleases: bool | None = None, installed: bool | None = None) -> bool:
            return super().contains(Version(item), prereleases, installed)

    monkeypatch.setattr(_requirements, "REQUIREMENTS", {"torch": Strict(">=2.13")})
    monkeypatch.setattr(_requirements.metadata, "version", lambda name: "main")
    with pytest.raises(
        _requirements.RequirementError, match=r"torch main is installed, detjac_lanczos needs torch>=2.13"
    ):
        _requirements.check_requirements()


def test_the_ranges_checked_are_those_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {(r := Requirement(text)).name: r.specifier for text in project["dependencies"]}
    assert {name: declared[name] for name in _requirements.REQUIREMENTS} == _requirements.REQUIREMENTS


def test_triton_is_asked_for_where_it_exists_and_as_torch_asks_for_it() -> None:
    """Torch names one version of triton, on Linux alone, and another with each of its own releases."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for extra in ("gpu", "dev") for text in project["optional-dependencies"][extra]]
    triton = [requirement for requirement in asked if requirement.name == "triton"]
    assert len(triton) == 2
    for requirement in triton:
        assert "3.7.1" in requirement.specifier, "torch 2.13.0 asks for 3.7.1"
        assert requirement.marker is not None
        systems = [s for s in ("Linux", "Darwin", "Windows") if requirement.marker.evaluate({"platform_system": s})]
        assert systems == ["Linux"]
    assert "triton" not in re.findall(r"^[\w.-]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
