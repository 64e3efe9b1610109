"""The machine's facts, from made-up roots whose content is known and from the machine that runs the tests."""

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from attnbench import environment
from attnbench.environment import (
    THREAD_VARIABLES,
    available_cores,
    available_memory,
    describe,
    last_level_cache,
    place,
    scrub,
    source_hash,
    torch_facts,
)

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def leaves(value: Any) -> Iterator[Any]:
    """Every value in nested dicts and lists."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


@pytest.fixture
def frodo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user `frodo` on the host `bag-end.shire.example`, at home in a directory of that name."""
    home = tmp_path / "frodo"
    home.mkdir()
    monkeypatch.setattr(socket, "gethostname", lambda: "bag-end.shire.example")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "frodo")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_this_machine_is_described_in_plain_json() -> None:
    facts = describe()

    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]["logical_cores"] >= 1
    assert 0 < facts["memory"]["available_bytes"] <= facts["memory"]["total_bytes"]
    assert facts["versions"]["torch"]
    assert facts["python"]["version"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize("facts", [describe, torch_facts])
def test_no_value_names_this_host_this_user_or_an_absolute_path(facts: Any) -> None:
    for value in map(str, leaves(facts())):
        words = re.split(r"[^A-Za-z0-9]", value)
        assert socket.gethostname() not in words
        assert getpass.getuser() not in words
        assert not re.search(r"(^|[\s=:,\"'])/\w", value)
        assert str(Path.home()) not in value


def test_names_and_paths_in_the_facts_themselves_are_replaced(
    frodo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{frodo}/devices")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "plugin:/opt/secret/alloc.so,-L/opt/lib/cuda")
    root = write(
        tmp_path / "root",
        {
            "proc/sys/kernel/osrelease": "6.1.0-frodo@bag-end\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: CPU of bag-end.shire.example\n",
        },
    )

    facts = describe(root)

    assert facts["kernel"] == "6.1.0-<user>@<host>"
    assert facts["cpu"]["model"] == "CPU of <host>"
    assert facts["variables"]["CUDA_VISIBLE_DEVICES"] == "<home>/devices"
    assert facts["variables"]["PYTORCH_CUDA_ALLOC_CONF"] == "plugin:<path>/alloc.so,-L<path>/cuda"


def test_only_the_listed_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "hunter2")

    facts = describe()

    assert facts["variables"] == {"OMP_NUM_THREADS": "3"}
    assert "hunter2" not in map(str, leaves(facts))


@pytest.mark.parametrize("kind", ["missing", "garbage", "directories"])
def test_what_cannot_be_read_is_none_and_never_an_exception(kind: str, tmp_path: Path) -> None:
    names = (
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/stat",
        "proc/loadavg",
        "proc/self/cgroup",
        "proc/self/status",
        "sys/devices/system/cpu/cpu0/cache/index0/size",
        "sys/fs/cgroup/cpu.max",
    )
    if kind == "garbage":
        write(tmp_path, dict.fromkeys(names, "\x00 ::: /\n-1 max max\n::\n"))
        (tmp_path / "proc/stat").write_bytes(b"\xff\xfe cpu")
    elif kind == "directories":
        for name in names:
            (tmp_path / name).mkdir(parents=True)

    facts = describe(tmp_path)
    machine = {key: facts[key] for key in ("memory", "cgroup", "load", "kernel")}
    caches = facts["cpu"].pop("caches")
    facts["cpu"].pop("architecture")

    assert {*leaves(machine), *leaves(facts["cpu"])} == {None}
    assert {*leaves(caches)} == {None}
    assert available_cores(tmp_path) >= 1
    assert available_memory(tmp_path) > 0


def test_a_distribution_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DISTRIBUTIONS", ("no-such-distribution", "numpy"))

    versions = describe()["versions"]

    assert versions["no-such-distribution"] is None
    assert re.match(r"\d+\.\d+", versions["numpy"])


def test_describing_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from attnbench.environment import describe; before = set(sys.modules); describe(); "
        "sys.exit(bool({'torch', 'scipy', 'pandas'} & set(sys.modules) or 'numpy' in set(sys.modules) - before))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_processor_caches_load_and_steal_are_read_in_si_units(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu"
    flags = "flags\t\t: fpu hypervisor avx2\n"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "".join(
                f"processor\t: {i}\nmodel name\t: Fast 9000\n{flags}power management:\n\n" for i in range(4)
            ),
            **{f"{cpu}{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}\n" for i in range(4)},
            f"{cpu}0/cache/index0/level": "1\n",
            f"{cpu}0/cache/index0/type": "Data\n",
            f"{cpu}0/cache/index0/size": "48K\n",
            f"{cpu}0/cache/index0/shared_cpu_list": "0,2\n",
            f"{cpu}0/cpufreq/scaling_governor": "performance\n",
            "proc/self/status": "Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
            "proc/loadavg": "0.50 1.25 2.00 1/87 4101\n",
            "proc/stat": "cpu  10 0 20 60 0 0 0 10 0 0\ncpu0 1 2 3\n",
            "proc/meminfo": "MemTotal:       1024 kB\nMemAvailable:    512 kB\nActive(anon):   1 kB\n",
        },
    )

    facts = describe(root)

    assert facts["cpu"] == {
        "model": "Fast 9000",
        "architecture": os.uname().machine,
        "physical_cores": 2,
        "logical_cores": 4,
        "affinity": "0-3",
        "caches": [{"level": 1, "type": "Data", "bytes": 48 * 1024, "shared_by": "0,2"}],
        "governor": "performance",
        "hypervisor": True,
    }
    assert facts["load"] == {"average": [0.5, 1.25, 2.0], "steal_share_since_boot": 0.1}
    assert facts["memory"] == {"total_bytes": 2**20, "available_bytes": 2**19}


def test_an_arm_processor_is_named_by_its_part(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"})

    assert describe(root)["cpu"]["model"] == "0x41 part 0xd4f"
    assert describe(root)["cpu"]["hypervisor"] is None


VERSION_2 = {
    "proc/self/cgroup": "0::/slice/job\n",
    "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
    "sys/fs/cgroup/slice/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/slice/job/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/slice/job/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/slice/job/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
    "sys/fs/cgroup/slice/memory.max": "max\n",
    "sys/fs/cgroup/slice/memory.current": "7\n",
}
VERSION_1 = {
    "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/host/side/path\n1:name=systemd:/\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1], ids=["version 2", "version 1"])
def test_limits_of_control_groups_and_of_those_above_are_found(files: dict[str, str], tmp_path: Path) -> None:
    root = write(tmp_path, {**files, "proc/meminfo": f"MemAvailable: {16 * GIB // 1024} kB\n"})

    assert describe(root)["cgroup"] == {"cores": 1.5, "memory_bytes": 4 * GIB}
    assert available_cores(root) == 1
    assert available_memory(root) == 4 * GIB - (3 * GIB - GIB)


def test_a_quota_below_one_core_leaves_one(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})

    assert describe(root)["cgroup"]["cores"] == 0.5
    assert available_cores(root) == 1


def test_a_quota_above_the_affinity_does_not_add_cores(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "900000000 100000\n"})

    assert available_cores(root) == len(os.sched_getaffinity(0))


def test_neighbouring_cores_are_drawn_one_processor_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packages of three cores of two processors, of which the first core of either is not ours."""
    topology = "sys/devices/system/cpu/cpu{}/topology/{}".format
    for number in range(12):
        core = number % 6
        write(
            tmp_path,
            {
                topology(number, "thread_siblings_list"): f"{core},{core + 6}\n",
                topology(number, "physical_package_id"): f"{core % 2}\n",
            },
        )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5, 8, 9, 10, 11})
    drawn = {tuple(place(2, Random(seed), tmp_path)) for seed in range(50)}
    assert drawn == {(2, 4), (4, 3), (3, 5)}
    assert place(4, Random(0), tmp_path) == [2, 4, 3, 5]
    assert place(5, Random(0), tmp_path) == []


def test_where_nothing_tells_which_processors_share_a_core_each_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3})
    assert place(2, Random(0), tmp_path) == [3, 7]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert place(1, Random(0), tmp_path) == []


def test_what_is_free_on_the_machine_bounds_a_generous_group(tmp_path: Path) -> None:
    root = write(tmp_path, {**VERSION_2, "proc/meminfo": "MemAvailable: 100 kB\n"})

    assert available_memory(root) == 100 * 1024


def test_torch_tells_how_it_was_built() -> None:
    import torch

    facts = torch_facts()

    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert isinstance(facts["mkldnn"], bool)
    assert facts["parallel_backend"] in ("OpenMP", "native thread pool")
    assert "-O2" in facts["cxx_flags"] or "-O3" in facts["cxx_flags"]


def test_asking_torch_does_not_initialise_a_cuda_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse(*_: object) -> None:
        raise AssertionError("this counts the devices, which initialises the driver")

    monkeypatch.setattr(torch.__config__, "show", refuse)
    for name in ("is_available", "device_count", "init", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refuse)

    torch_facts()


def test_a_source_hash_follows_names_and_contents_but_not_the_place(tmp_path: Path) -> None:
    files = {"a/__init__.py": "", "a/deep/one.py": "x = 1\n", "a/data.txt": "1"}
    here, there = (write(tmp_path / place, dict(files)) / "a" for place in ("here", "there"))
    original = source_hash(here)

    assert re.fullmatch(r"[0-9a-f]{64}", original)
    assert source_hash(there) == original
    (there / "data.txt").write_text("2")
    assert source_hash(there) == original  # only Python's files count in a directory
    (there / "deep/one.py").write_text("x = 2\n")
    assert source_hash(there) != original
    (here / "deep/one.py").rename(here / "deep/two.py")
    assert source_hash(here) != original


def test_a_source_hash_of_files_does_not_depend_on_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.txt"
    one.write_text("1")
    two.write_text("2")

    assert source_hash(one, two) == source_hash(two, one)
    assert source_hash(one) != source_hash(one, two)


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        source_hash(tmp_path / "gone.py")


def test_scrubbing_replaces_places_and_names_but_not_parts_of_words(
    frodo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (frodo / "bench").mkdir()
    monkeypatch.chdir(frodo / "bench")

    assert scrub(f"{frodo}/bench/a.py and {frodo}/b.py") == "<cwd>/a.py and <home>/b.py"
    assert scrub("frodo@bag-end (bag-end.shire.example)") == "<user>@<host> (<host>)"
    assert scrub("frodos workshop, bag-ends") == "frodos workshop, bag-ends"


def test_the_root_directory_as_a_home_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    monkeypatch.chdir("/")

    assert scrub("3 / 4") == "3 / 4"


def test_scrubbing_works_where_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert scrub("plain") == "plain"


def test_waiting_is_summed_over_the_threads(tmp_path: Path) -> None:
    for thread, nanoseconds in (("1", 2_000_000), ("2", 500_000)):
        folder = tmp_path / "proc/self/task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(f"77 {nanoseconds} 3\n")
    assert environment.waited_s(tmp_path) == pytest.approx(2.5e-3)
    (tmp_path / "proc/self/task/2/schedstat").write_text("0\n")
    assert environment.waited_s(tmp_path) is None


def test_what_runs_beside_us_is_counted_without_ourselves(tmp_path: Path) -> None:
    assert environment.running(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.50 0.60 0.70 5/321 4242\n")
    assert environment.running(tmp_path) == 4


def test_the_last_level_caches_that_the_threads_can_fill_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for core in range(8):  # two cores share 32 MiB of the third level
        near = f"{core // 2 * 2}-{core // 2 * 2 + 1}"
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "32K", core), (1, "Instruction", "64M", core), (3, "Unified", "32768K", near)]
        ):
            place = f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
            values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
            files |= {f"{place}/{name}": f"{value}\n" for name, value in values.items()}
    root = write(tmp_path, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    sizes = [last_level_cache(threads, root) for threads in (1, 2, 6)]
    assert sizes == [32 * 2**20, 64 * 2**20, 96 * 2**20]
    assert last_level_cache(1, tmp_path / "nowhere") is None
