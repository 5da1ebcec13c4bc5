"""Imports flow one way, and the core needs nothing but torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jenga_compile"

BASE = {"errors", "scalars", "grid"}
GEOMETRY = BASE | {"curve", "block_mask", "token_context"}
COMPILER = GEOMETRY | {"sites", "config", "cost", "kernels", "models", "passes"}

MAY_IMPORT = {
    "errors": set(),
    "scalars": set(),
    "sites": set(),
    "config": BASE | {"block_mask"},
    "grid": {"errors", "scalars"},
    "curve": BASE,
    "token_context": BASE,
    "block_mask": BASE | {"curve"},
    "files": {"errors"},
    "media": {"errors", "files"},
    "models": BASE,
    "kernels": GEOMETRY | {"config", "files"},
    "passes": COMPILER,
    "self_check": {"errors", "kernels"},
    "backend": COMPILER | {"self_check"},
    "dynamo_state": set(),
    "explanation": COMPILER | {"backend", "dynamo_state"},
    "compilation": COMPILER | {"backend"},
    "sampler": COMPILER | {"backend", "compilation", "explanation", "files", "media", "presets"},
    "zoo": {"errors", "media"},
    "generate": COMPILER | {"files", "media", "presets", "sampler", "zoo"},
    "presets": BASE | {"config"},
    "cost": GEOMETRY | {"config"},
    "forecast": COMPILER | {"compilation", "explanation", "cost", "files", "presets"},
    "forecast_text": {"files", "forecast", "models", "presets", "sites"},
    "bench": COMPILER | {"files", "forecast_text"},
    "cli": {"errors", "generate", "forecast", "forecast_text", "bench"},
    "__init__": {"config", "compilation", "explanation", "kernels", "presets", "sampler", "sites", "token_context"},
}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """Layers that a file imports; what only type checkers see does not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            plain = node.module == "jenga_compile"
            found.update(f"{node.module}.{alias.name}" if plain else node.module for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name.split(".")[1] for name in found if name.startswith("jenga_compile.")}


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_layers_below_its_own(path: Path) -> None:
    assert imported_layers(path) - {layer(path)} <= MAY_IMPORT[layer(path)]


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    rogue = tmp_path / "rogue.py"
    rogue.write_text("def f():\n    from jenga_compile import backend\n    import jenga_compile.cli\n")
    assert imported_layers(rogue) == {"backend", "cli"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_no_model_is_named_in_the_passes() -> None:
    names = ("hunyuan", "wan", "cogvideo", "ltx", "mochi", "flux", "diffusers")
    for path in (PACKAGE / "passes").rglob("*.py"):
        words = {word.lower() for word in path.read_text().replace("_", " ").split()}
        assert not words & set(names), path


@pytest.mark.parametrize("blocked", ["triton", "diffusers", "transformers"])
def test_the_core_works_without(blocked: str) -> None:
    script = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "import torch, jenga_compile, jenga_compile.backend\n"
        "from jenga_compile.kernels.knobs import make_knobs\n"
        "q = torch.randn(1, 1, 200, 16)\n"
        "i, c = torch.ops.jenga.block_select(q, q, torch.eye(2).bool(), make_knobs(1.0, 0.0), 200)\n"
        "assert torch.ops.jenga.block_sparse_attention(q, q, q, i, c, make_knobs(1.0, 0.0), 200).isfinite().all()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
