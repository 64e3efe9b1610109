"""What a run was measured on, without telling whose machine it is.

Facts are read from `/proc` and `/sys` below `root`; what cannot be read is None. No value holds a host or
user name, an absolute path, or an environment variable that is not in `THREAD_VARIABLES`.
"""

import contextlib
import getpass
import hashlib
import os
import platform
import re
import socket
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Any

DISTRIBUTIONS = ("attnbench", "torch", "numpy", "pluggy", "pandas", "scipy")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "GOMP_CPU_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""The only environment variables that are recorded."""

_ROOT = Path("/")
_CPU = "sys/devices/system/cpu"
_PATH = re.compile(r"(?:(?<![\w.~>/-])|(?<=-[IL]))/(?:[^\s/:;,='\"]+/)*(?=\w)")
"""An absolute path up to its last part, also behind a compiler's -I and -L."""


def describe(root: Path = _ROOT) -> dict[str, Any]:
    """The machine and the software, ready for JSON. Imports no library, opens no device; takes milliseconds."""
    facts = {
        "cpu": _cpu(root),
        "memory": {
            "total_bytes": _meminfo(root).get("MemTotal"),
            "available_bytes": _meminfo(root).get("MemAvailable"),
        },
        "cgroup": {"cores": _quota(root), "memory_bytes": _memory_limit(root)},
        "load": {"average": _load(root), "steal_share_since_boot": _steal(root)},
        "kernel": _read(root / "proc/sys/kernel/osrelease"),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
        },
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }
    cleaned: dict[str, Any] = _cleaned(facts)
    return cleaned


def no_cuda(root: Path = _ROOT) -> str | None:
    """Why there is no CUDA device here, as far as it shows without torch; None where there may be one."""
    torch = _version("torch") or ""
    if torch.endswith("+cpu"):
        return f"torch {torch} is built without CUDA"
    if not any((root / path).exists() for path in ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")):
        return "no NVIDIA driver"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them all"
    return None


def torch_facts() -> dict[str, Any]:
    """How torch was built, and its default thread counts. Imports torch and never touches CUDA.

    `torch.__config__.show()` would say more, but it counts the devices and so initialises the driver, after
    which no forked child can use them.
    """
    import torch

    parallel = torch.__config__.parallel_info()
    backend = re.search(r"ATen parallel backend: (.+)", parallel)
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "git_version": torch.version.git_version,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "debug": torch.version.debug,
        "parallel_backend": backend[1] if backend else None,
        "libraries": [line for line in parallel.splitlines() if line.startswith(("OpenMP ", "Intel(R) "))],
        "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cxx_flags": torch.__config__._cxx_flags().strip(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
    }
    cleaned: dict[str, Any] = _cleaned(facts)
    return cleaned


def available_cores(root: Path = _ROOT) -> int:
    """Cores that this process may keep busy: its affinity within the control group's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def place(threads: int, random: Random, root: Path = _ROOT) -> list[int]:
    """So many neighbouring cores of those that this process may use, drawn by lot; empty where there are fewer.

    A core is the first of the logical processors that share it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    first: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)):
        first.setdefault(
            _read(root / _CPU / f"cpu{number}/topology/thread_siblings_list") or str(number), number
        )
    package = {
        n: _number(_read(root / _CPU / f"cpu{n}/topology/physical_package_id")) or 0 for n in first.values()
    }
    cores = sorted(package, key=lambda number: (package[number], number))
    start = random.randrange(max(len(cores) - threads, 0) + 1)
    return cores[start : start + threads] if threads <= len(cores) else []


def last_level_cache(threads: int, root: Path = _ROOT) -> int | None:
    """Bytes of the last-level caches that so many threads can fill at once; None where they cannot be read.

    A core's own are those of the highest level; where this process's cores have several, `threads` of them count.
    """
    found: dict[str | None, int] = {}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    for core in (root / _CPU).glob("cpu[0-9]*"):
        if allowed is None or int(core.name.removeprefix("cpu")) in allowed:
            known = [c for c in _caches_of(core) if c["bytes"] and c["level"] and c["type"] != "Instruction"]
            if known:
                last = max(known, key=lambda cache: cache["level"])
                found[last["shared_by"] or core.name] = last["bytes"]
    return sum(sorted(found.values(), reverse=True)[:threads]) or None


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that can be allocated now without swapping, within the control groups' limits."""
    free = _meminfo(root).get("MemAvailable")
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *(limit - used for limit, used in _memory_limits(root))]))


def waited_s(root: Path = _ROOT) -> float | None:
    """Seconds that the threads of this process have waited for a processor while they could have run."""
    try:
        stats = [path.read_text().split() for path in (root / "proc/self/task").glob("*/schedstat")]
        return sum(int(stat[1]) for stat in stats) * 1e-9
    except (OSError, IndexError, ValueError):  # a kernel without it, or a thread that has just ended
        return None


def running(root: Path = _ROOT) -> int | None:
    """Threads of the machine that run or wait for a processor all the while, but for the one that asks.

    The least of three counts over a millisecond: a process that has just been stopped is still counted at first.
    """
    counts = []
    for pause in (0.0, 2e-4, 8e-4):
        time.sleep(pause)
        match = re.search(r" (\d+)/\d+ ", _read(root / "proc/loadavg") or "")
        counts += [int(match[1]) - 1] if match else []
    return min(counts, default=None)


def source_hash(*paths: Path) -> str:
    """SHA-256 over the files' names and contents; a directory means all `.py` files below it.

    It depends neither on where the directory lies nor on the order of `paths`. Raises OSError.
    """
    entries = []
    for path in paths:
        files = path.rglob("*.py") if path.is_dir() else [path]
        start = path if path.is_dir() else path.parent
        for file in files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            entries.append(f"{content} {file.relative_to(start).as_posix()}\n")
    return hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()


def scrub(text: str) -> str:
    """`text` with the working and the home directory, the host and the user replaced by placeholders."""
    for secret, placeholder in _secrets():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", placeholder, text)
    return text


def _secrets() -> list[tuple[str, str]]:
    """What to hide and what stands for it, longest first, so that no part of one is left over."""
    host = socket.gethostname()
    found = {host: "<host>", host.split(".")[0]: "<host>"}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user id without a name
        found[getpass.getuser()] = "<user>"
    with contextlib.suppress(RuntimeError):  # a user without a home
        found[str(Path.home())] = "<home>"
    with contextlib.suppress(OSError):  # the working directory is gone
        found[os.getcwd()] = "<cwd>"
    return sorted(
        ((secret, place) for secret, place in found.items() if secret.strip("/")),
        key=lambda pair: -len(pair[0]),
    )


def _cleaned(value: Any) -> Any:
    """`value` with every text in it scrubbed, and all but the last part of absolute paths cut off."""
    if isinstance(value, str):
        return _PATH.sub("<path>/", scrub(value))
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- processor


def _cpu(root: Path) -> dict[str, Any]:
    info = _read(root / "proc/cpuinfo") or ""
    facts = dict(re.findall(r"^([^\t\n:]+?)\s*: (.+)$", info, re.MULTILINE))
    arm = f"{facts.get('CPU implementer')} part {facts.get('CPU part')}" if "CPU part" in facts else None
    siblings = {_read(path) for path in (root / _CPU).glob("cpu[0-9]*/topology/thread_siblings_list")}
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)$", _read(root / "proc/self/status") or "", re.MULTILINE)
    return {
        "model": facts.get("model name", arm),
        "architecture": platform.machine(),
        "physical_cores": len(siblings - {None}) or None,
        "logical_cores": len(re.findall(r"^processor\s*:", info, re.MULTILINE)) or None,
        "affinity": allowed[1] if allowed else None,
        "caches": _caches(root),
        "governor": _read(root / _CPU / "cpu0/cpufreq/scaling_governor"),
        "hypervisor": "hypervisor" in facts["flags"].split() if "flags" in facts else None,
    }


def _caches(root: Path) -> list[dict[str, Any]] | None:
    """The first core's caches, from the fastest."""
    return _caches_of(root / _CPU / "cpu0") or None


def _caches_of(core: Path) -> list[dict[str, Any]]:
    found = []
    for index in sorted((core / "cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size") or "")
        found.append(
            {
                "level": _number(_read(index / "level")),
                "type": _read(index / "type"),
                "bytes": int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]] if size else None,
                "shared_by": _read(index / "shared_cpu_list"),
            }
        )
    return found


def _load(root: Path) -> list[float] | None:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    averages = re.findall(r"\d+\.\d+", _read(root / "proc/loadavg") or "")
    return [float(average) for average in averages] or None


def _steal(root: Path) -> float | None:
    """Share of the processor's time since boot that the hypervisor gave to others."""
    match = re.match(r"cpu +(\d+(?: \d+){7})", _read(root / "proc/stat") or "")
    if match is None:
        return None
    ticks = [int(word) for word in match[1].split()]  # user nice system idle iowait irq softirq steal
    return ticks[7] / sum(ticks) if any(ticks) else None


# ---------------------------------------------------------------- memory and control groups


def _meminfo(root: Path) -> dict[str, int]:
    lines = re.findall(r"^(\w+): +(\d+) kB$", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in lines}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group and those above it, of version 2 and of `controller` of version 1."""
    lines = re.findall(r"^\d+:([^:]*):(.+)$", _read(root / "proc/self/cgroup") or "", re.MULTILINE)
    for controllers, path in lines:
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = mount / path.lstrip("/")
        yield from (group, *(parent for parent in group.parents if parent.is_relative_to(mount)))


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the tightest control group allows; None without a limit."""
    quotas = []
    for group in _groups(root, "cpu"):
        text = _read(group / "cpu.max")
        text = text or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        match = re.fullmatch(
            r"(\d+) ([1-9]\d*)", text
        )  # without a limit: `max` in version 2, -1 in version 1
        if match:
            quotas.append(int(match[1]) / int(match[2]))
    return min(quotas, default=None)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of each control group that has a limit."""
    for group in _groups(root, "memory"):
        for limit_name, used_name, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(_read(group / limit_name)), _number(_read(group / used_name))
            if limit is not None and used is not None and limit < 1 << 60:  # version 1 writes 2^63 for none
                idle = re.search(rf"^{reclaimable} (\d+)$", _read(group / "memory.stat") or "", re.MULTILINE)
                yield limit, used - (int(idle[1]) if idle else 0)


def _memory_limit(root: Path) -> int | None:
    return min((limit for limit, _ in _memory_limits(root)), default=None)
