"""What a measurement was made on; every result carries it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def environment() -> dict[str, object]:
    """Machine, versions, commit, and how busy the machine was."""
    return {
        "cpu": _cpu(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _commit() -> str | None:
    """Commit of the package's own repository, with `+` where files differ from it; or the variable COMMIT, or None."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        found = [_git(root, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))]
        if found[0]:
            return found[0] + ("+" if found[1] else "")
    return os.environ.get("COMMIT")


def _git(folder: Path, *command: str) -> str:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=folder, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
