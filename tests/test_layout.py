"""The project's card names seven places; the README says where they are; a wheel holds one top-level package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARD = {
    "jenga_compile": ROOT / "jenga_compile",
    "passes": ROOT / "jenga_compile" / "passes",
    "kernels": ROOT / "jenga_compile" / "kernels",
    "models": ROOT / "jenga_compile" / "models",
    "tests": ROOT / "tests",
    "benchmarks": ROOT / "benchmarks",
    "pyproject.toml": ROOT / "pyproject.toml",
}


@pytest.mark.parametrize("name", CARD)
def test_the_cards_names_exist_where_the_readme_says(name: str) -> None:
    assert CARD[name].exists()
    written = str(CARD[name].relative_to(ROOT))
    assert f"`{written}" in (ROOT / "README.md").read_text()


def test_the_wheel_has_one_top_level_name_and_carries_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*command, str(source)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"jenga_compile"}
    weights = ("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "README.md")
    for needed in ("py.typed", "zoo/data/LICENSE.sprites.txt", *(f"zoo/weights/{name}" for name in weights)):
        assert f"jenga_compile/{needed}" in names


def test_every_stem_of_the_pipeline_has_its_file_and_its_test() -> None:
    from jenga_compile.passes import PIPELINE

    for step in PIPELINE:
        assert (ROOT / "jenga_compile" / "passes" / f"{step.name}.py").is_file()
        assert (ROOT / "tests" / "passes" / f"test_{step.name}.py").is_file()
