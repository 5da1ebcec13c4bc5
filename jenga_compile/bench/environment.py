"""What a measurement was made on; every result carries it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
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


_SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")


def gpu() -> dict[str, object]:
    """What a measurement of kernels depends on besides: Triton, and a GPU with its clocks and power where it tells."""
    facts: dict[str, object] = {"triton": _version("triton")}
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties()
        facts |= {
            "cuda": torch.version.cuda,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "gpu_bytes": about.total_memory,
            "nvidia_smi": _nvidia_smi(),
        }
    return facts


def _nvidia_smi() -> dict[str, str] | None:
    """What nvidia-smi tells of the current GPU, with units; None where it is not there."""
    query = ["--format=csv,noheader", f"--id={torch.cuda.current_device()}", f"--query-gpu={','.join(_SMI_FIELDS)}"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=False)
    except OSError:
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_SMI_FIELDS, values, strict=True)) if len(values) == len(_SMI_FIELDS) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
