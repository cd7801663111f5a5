"""Says on what was measured: the machine, the compilers, the versions of the peers."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parent.parent.parent

# What Debian calls the libraries of peers.
PACKAGES = {"oneTBB": "libtbb-dev", "Boost": "libboost-dev", "rayon": "librust-rayon-dev"}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(folder: Path) -> Dict[str, str]:
    """Of the machine and of the build in the folder; what cannot be found out is left out."""
    known = {
        "measured on": datetime.date.today().isoformat(),
        "pyarallel": _revision(),
        "CPU": f"{_cpu()}, {cores()} cores" + (", a virtual machine" if _is_virtual() else ""),
        "memory": _memory(),
        "system": f"{_distribution()}, {_kernel()}",
        "C++": _compiler(folder),
        "Rust": _first_line("rustc", "--version"),
        "Python": platform.python_version(),
        **{peer: _package_version(package) for peer, package in PACKAGES.items()},
    }
    return {name: value for name, value in known.items() if value}


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else ""


def _field(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def _revision() -> str:
    version = _first_line("git", "describe", "--always", "--tags")
    # The page itself, and what it shows, changes with every run.
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no", "--", "include", "tests/bench")
    return f"{version} with changes that are not committed" if version and changed else version


def _cpu() -> str:
    return _field("/proc/cpuinfo", r"^model name\s*:(.*)$") or platform.processor() or platform.machine()


def _is_virtual() -> bool:
    return bool(_field("/proc/cpuinfo", r"^flags\s*:.*\b(hypervisor)\b"))


def _memory() -> str:
    kibibytes = _field("/proc/meminfo", r"^MemTotal:\s*(\d+)")
    return f"{int(kibibytes) / (1 << 20):.0f} GiB" if kibibytes else ""


def _distribution() -> str:
    return _field("/etc/os-release", r'^PRETTY_NAME="?([^"\n]*)') or platform.platform()


def _kernel() -> str:
    number = re.match(r"\d+\.\d+", platform.release())
    return f"{platform.system()} {number.group()}" if number else platform.system()


def _compiler(folder: Path) -> str:
    cache = str(folder / "CMakeCache.txt")
    compiler = _field(cache, r"^CMAKE_CXX_COMPILER:[^=]*=(.*)$")
    return f"{_first_line(compiler, '--version')}, -O2" if compiler else ""  # for all peers, see CMakeLists.txt


def _package_version(package: str) -> str:
    return _first_line("dpkg-query", "--show", "--showformat=${Version}", package)


def quietness(others: float, stolen: float) -> str:
    parts: List[str] = [f"other programs took {others:.1f} % of the CPU time"]
    if stolen >= 0.05:
        parts.append(f"and the host {stolen:.1f} %")
    return " ".join(parts)
