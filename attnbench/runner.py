"""Jobs -> processes -> rows as they arrive, each written down at once."""

import contextlib
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnbench import caches, environment, peaks
from attnbench.against import SUFFIX, Side
from attnbench.caches import Caching
from attnbench.clocks import Taken
from attnbench.forkserver import Child, ChildEndedError, ChildTimeoutError, ForkServer, running
from attnbench.implementation import Device
from attnbench.measure import Course
from attnbench.plan import NO_CACHE, Plan, Planned
from attnbench.plugins import Registry
from attnbench.problem import Problem
from attnbench.records import Accuracy, Cell, Memory, Result, Status, worst
from attnbench.results import Journal, read_journal
from attnbench.suites import Suite
from attnbench.units import bytes_text, seconds_text

PRELOAD = ("attnbench.worker", "attnbench.judge")
WORKER = "attnbench.worker:serve"
JUDGE = "attnbench.judge:serve"
PROBE = "attnbench.worker:probe"
PEAKS = "attnbench.peaks:serve"
PEAKS_TIMEOUT_S = 60.0
"""A run with less time left than this measures no peaks."""
CACHE = "cache"
"""In the run's folder, while it is unfinished: what compilers keep for later launches and for `--resume`."""
JUDGE_TIMEOUT_S = 600.0
TIMED = "after it was timed"
GRACE_S = 2.0
GRACE = 0.05
"""Past a time budget, what is under way may take this share of it, and at least `GRACE_S`, to come to an end."""
SECOND_LOOKS = 8
"""Further blocks of a job whose clock seems to be wrong, each twice as long as the one before."""
LONG_LOOK_S = 0.2
"""In a block as long as this, by the parent's clock, a late exchange of messages explains nothing; a job that was stopped, once."""
CONTEXT_BYTES = 2**30
"""Of a device's memory, what the context of a further process is assumed to take."""
SHARE_OF_MEMORY = 0.8
"""Of the memory that is available when the run begins; the limit of one job where the suite gives none."""

Key = tuple[str, str, str, int, str, str]
Judges = Mapping[ForkServer, "_Judge"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands; handed to the listener before a cell is worked on and after a row."""

    done: int
    total: int
    current: str
    """What is being done to which cell, in words."""
    left_s: float | None
    """Estimated time left."""
    row: Result | None = None
    """The row that has just been written."""


Listener = Callable[[Progress], None]


@dataclass(kw_only=True)
class Candidate:
    """A cell that has passed the judge, on its way to a timing."""

    planned: Planned
    answer: Mapping[str, Any]
    accuracy: Accuracy
    memory: Memory
    course: Course
    canary: Child
    caching: Caching = field(default_factory=Caching)
    child: Child | None = None


class _EndError(Exception):
    """The end of a cell other than `ok`: its row says why."""

    def __init__(
        self, status: Status, reason: str, output: str = "", accuracy: Accuracy | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.output, self.accuracy = status, reason, output, accuracy


def fork_server(patient: bool = False, python: str = sys.executable) -> ForkServer:
    """A server that has imported torch, that of the interpreter `python`.

    In the children of a `patient` one, OpenMP threads that wait for each other sleep. By default they spin, and
    the first calls of a process, whose threads may share a core at first, then wait for a tick of the scheduler.
    """
    env = {  # libraries that would take the device's memory ahead of need, beside other jobs
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    if patient:
        env["OMP_WAIT_POLICY"] = "passive"
    return ForkServer(PRELOAD, python, {name: os.environ.get(name, value) for name, value in env.items()})


def probe(server: ForkServer) -> tuple[tuple[Device, ...], str, dict[str, Any]]:
    """CUDA devices, the reason why there is none, and facts for the header; asked in a process of its own."""
    with running(server, PROBE) as child:
        answer = child.ask({}, timeout=120)
    devices = []
    for facts in answer["devices"]:
        capability = tuple(facts.pop("compute_capability"))
        devices.append(Device(**facts, compute_capability=capability))
    return tuple(devices), answer["reason"], answer["facts"]


def known_peaks(
    server: ForkServer, device: Device, threads: int, again: bool = False
) -> tuple[peaks.Peaks | None, bool]:
    """The peaks of a device, and whether they are kept: those of the user's cache, or measured in a child.

    `again` measures in any case and keeps the higher of both. None where the child does not manage.
    """
    model = device.name or str(environment.describe()["cpu"]["model"] or device)
    threads = threads if device.kind == "cpu" else 0
    kept = peaks.load(model, threads)
    if kept and not again:
        return kept, True
    with running(server, PEAKS) as child:
        try:
            answer = child.ask({"device": str(device), "threads": max(threads, 1)}, PEAKS_TIMEOUT_S)
        except (ChildEndedError, ChildTimeoutError):
            return kept, kept is not None
    found = peaks.Peaks(
        device=model,
        threads=threads,
        torch=version("torch"),
        flops_per_s=answer["flops_per_s"],
        bytes_per_s={int(size): rate for size, rate in answer["bytes_per_s"].items()},
    )
    found = peaks.faster(found, kept) if kept else found
    return found, peaks.save(found)


@dataclass(kw_only=True)
class Runner:
    """One run of a plan. `rows` yields every row that it makes, after it has been written to the journal."""

    plan: Plan
    suite: Suite
    registry: Registry
    server: ForkServer
    """Of the processes that are timed."""
    patient: ForkServer
    """Of the others."""
    base: Side | None = None
    """Of the cells whose names end with `against.SUFFIX`."""
    folder: Path
    seed: int
    done: dict[Key, Result] = field(default_factory=dict)
    """Rows by cell key, those of an earlier part of the run included."""
    listener: Listener = lambda _: None
    time_budget_s: float | None = None
    limits: bool = False
    """Whether times are held against the device's peaks, which are measured where nobody has done so."""
    stopped: str = ""
    """Why the run ended before its plan did, in words."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._left = sum(job.cell.key not in self.done for job in self.plan.jobs)
        self._seconds_a_job = self.plan.seconds / max(len(self.plan.jobs), 1)
        self._random = random.Random(self.seed)
        self._memory = self.suite.measure.memory_bytes or int(
            SHARE_OF_MEMORY * environment.available_memory()
        )
        self._scratch = ""
        self._peaks: dict[str, peaks.Peaks | None] = {}
        self._top_clocks: dict[str, float] = {}

    # ------------------------------------------------------------ the whole

    def run(self) -> tuple[Result, ...]:
        """All rows in the plan's order. After `KeyboardInterrupt` or the time budget the rest is `not run`."""
        jobs = {job.cell.key for job in self.plan.jobs}
        try:
            self._preload()
            with Journal(self.folder) as journal:
                for row in self._rows():
                    if row.status is Status.NOT_RUN:
                        continue
                    journal.append(row)
                    self.done[row.cell.key] = row
                    self._left -= row.cell.key in jobs
                    self._say("", row)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            self.done |= {row.cell.key: row for row in read_journal(self.folder)}  # one may not be in it yet
        reason = self.stopped or "the run ended before this cell"
        return tuple(
            self.done.get(p.cell.key) or Result(cell=p.cell, status=Status.NOT_RUN, reason=reason)
            for p in self.plan.cells
        )

    def _preload(self) -> None:
        """Have the servers import what takes each process of the jobs that are left long, and compile into caches of
        the run's."""
        found = self.registry.implementations
        names = {
            job.cell.implementation.removesuffix(SUFFIX)
            for job in self.plan.jobs
            if job.cell.key not in self.done
        }
        modules = dict.fromkeys(m for name in sorted(names & found.keys()) for m in found[name].preload)
        cache = self.folder.resolve() / CACHE  # what the canary has compiled, launches need not compile
        env = {"TORCHINDUCTOR_CACHE_DIR": cache / "torchinductor", "TRITON_CACHE_DIR": cache / "triton"}
        for server in dict.fromkeys(s for side in self._sides for s in (side.patient, side.server)):
            server.load(list(modules), {name: os.environ.get(name, str(path)) for name, path in env.items()})

    def _rows(self) -> Iterator[Result]:
        for planned in self.plan.cells:
            if planned.status is not None and planned.cell.key not in self.done:
                yield Result(cell=planned.cell, status=planned.status, reason=planned.reason)
        finished = 0
        for problem, device, jobs in self.plan.groups():
            left = [job for job in jobs if job.cell.key not in self.done]
            if left and self._out_of_time():
                return
            if left:
                yield from self._problem(problem, device, left)
                finished += len(left)
                self._seconds_a_job = (time.monotonic() - self._began) / finished

    def _out_of_time(self) -> bool:
        budget = self.time_budget_s
        if budget is not None and time.monotonic() - self._began >= budget:
            self.stopped = f"the time budget of {seconds_text(budget)} was spent"
            return True
        return False

    def _patience(self, most: float) -> float:
        """Seconds to wait for an answer: `most`, or as long as the time budget and its grace last."""
        if self.time_budget_s is None:
            return most
        end = self._began + self.time_budget_s + max(GRACE_S, GRACE * self.time_budget_s)
        return max(0.0, min(most, end - time.monotonic()))

    def _late(self, status: Status, reason: str, output: str = "") -> _EndError:
        """The end of a cell whose answer did not come: its own, or the run's."""
        if self._out_of_time():
            return _EndError(Status.NOT_RUN, self.stopped)
        return _EndError(status, reason, output)

    @contextlib.contextmanager
    def _scratch_folder(self) -> Iterator[None]:
        """Where a problem's outputs travel from worker to judge: in memory where that is possible."""
        shared = "/dev/shm"
        self._scratch = tempfile.mkdtemp(
            prefix="attnbench-", dir=shared if os.access(shared, os.W_OK) else None
        )
        self.server.owns(self._scratch)
        try:
            yield
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _say(self, current: str, row: Result | None = None) -> None:
        left = self._patience(self._left * self._seconds_a_job)
        done = len(self.plan.cells) - self._left
        self.listener(Progress(done=done, total=len(self.plan.cells), current=current, left_s=left, row=row))

    # ------------------------------------------------------------ one problem

    def _problem(self, problem: Problem, device: Device, jobs: Sequence[Planned]) -> Iterator[Result]:
        candidates: list[Candidate] = []
        known: dict[str, Candidate | _EndError] = {}  # what is right is so whatever the caches hold
        self._know_peaks(device, jobs[0].cell.threads)
        with self._scratch_folder(), self._judges(problem, device) as judges:
            for job in jobs:
                if self._out_of_time():
                    return
                name = job.cell.implementation
                try:
                    found = known[name] = known.get(name) or self._admit(job, device, judges)
                    if isinstance(found, _EndError):
                        raise found
                    candidates.append(self._candidate(found, job, device))
                except _EndError as end:
                    known.setdefault(name, end)
                    yield self._row(job, end)
            try:
                yield from self._timed(candidates, device, judges)
            finally:
                for candidate in candidates:
                    self._dismiss(candidate)

    @cached_property
    def _ours(self) -> Side:
        found = self.registry.implementations
        return Side(
            server=self.server,
            patient=self.patient,
            targets={name: plugin.target for name, plugin in self.registry.owners.items()},
            approximate=frozenset(name for name, one in found.items() if one.approximation),
        )

    @property
    def _sides(self) -> list[Side]:
        return [self._ours, *([self.base] if self.base else [])]

    def _side(self, cell: Cell) -> Side:
        return self.base if self.base and cell.implementation.endswith(SUFFIX) else self._ours

    @contextlib.contextmanager
    def _judges(self, problem: Problem, device: Device) -> Iterator[Judges]:
        """One for each interpreter: another version of torch may make other inputs of the same seed."""
        servers = dict.fromkeys(side.patient for side in self._sides)
        judges = {server: _Judge(self, server, self._start(problem, device)) for server in servers}
        try:
            yield judges
        finally:
            for judge in judges.values():
                judge.end()

    def _start(self, problem: Problem, device: Device) -> dict[str, Any]:
        return {
            "problem": problem.text,
            "device": str(device),
            "seed": self.seed,
            "work": self.suite.verify.work,
        }

    def _limit(self, device: Device) -> int:
        """Bytes of the device's memory that one job may take."""
        if device.kind == "cuda":
            return self.suite.measure.memory_bytes or int(0.9 * device.memory_bytes)
        return self._memory

    def _message(self, op: str, job: Planned, device: Device) -> dict[str, Any]:
        return {
            **self._start(job.problem, device),
            "op": op,
            "target": self._side(job.cell).targets[job.cell.implementation],
            "implementation": job.cell.implementation.removesuffix(SUFFIX),
            "clock": job.cell.clock,
            "threads": job.cell.threads,
            "memory_bytes": self._limit(device),
            "batch_invariance": self.suite.verify.batch_invariance,
            "folder": self._scratch,
        }

    def _row(self, job: Planned, end: _EndError, found: Candidate | None = None) -> Result:
        reason = end.reason
        if end.status is Status.OUT_OF_MEMORY:
            reason += f" (limit {bytes_text(self._memory)})" if job.cell.device == "cpu" else ""
        return Result(
            cell=job.cell,
            status=end.status,
            reason=reason,
            accuracy=end.accuracy or (found.accuracy if found else None),
            memory=found.memory if found else None,
            kernel=found.answer["kernel"] if found else "",
            output=end.output,
        )

    # ------------------------------------------------------------ limits of the device

    def _know_peaks(self, device: Device, threads: int, again: bool = False) -> None:
        hurry = self._patience(PEAKS_TIMEOUT_S) < PEAKS_TIMEOUT_S
        untimed = not self.limits or not self.plan.launches
        if untimed or hurry or (str(device) in self._peaks and not again):
            return
        self._say(f"looking up or measuring what {device} can do at most")
        self._peaks[str(device)], _ = known_peaks(self.server, device, threads, again)

    def _floor(self, candidate: Candidate) -> peaks.Floor | None:
        """The least time of a cell; None where it is not known, and for approximations, which may do less."""
        cell = candidate.planned.cell
        known = self._peaks.get(cell.device)
        if known is None or cell.implementation in self._side(cell).approximate:
            return None
        return peaks.floor(candidate.planned.problem, known)

    def _too_fast(self, candidate: Candidate, device: Device) -> str | None:
        """A reason where the median lies below the floor, also after peaks have been measured again just now.

        They may have been measured on a busy machine, and a floor that is too high must accuse nobody.
        """
        median = candidate.course.timing(0.0, 0.0).median_s
        floor = self._floor(candidate)
        if floor is not None and median < floor.seconds:
            self._know_peaks(device, candidate.planned.cell.threads, again=True)
            floor = self._floor(candidate)
        if floor is None or median >= floor.seconds:
            return None
        least = seconds_text(floor.seconds)
        return f"{seconds_text(median)} a call, where this device needs {least} at least: {floor.why}"

    # ------------------------------------------------------------ one cell

    def _ask(self, child: Child, message: Mapping[str, Any], doing: str) -> dict[str, Any]:
        child.say(message)
        return self._answer(child, doing)

    def _answer(self, child: Child, doing: str) -> dict[str, Any]:
        """An answer of a worker, or the end of its cell as an `_EndError`."""
        limit = self.suite.measure.timeout_s
        kills = _kernel_kills()
        try:
            answer = child.answer(self._patience(limit))
        except ChildTimeoutError:
            child.end()
            reason = f"no answer within {seconds_text(limit)} {doing}"
            raise self._late(Status.TIMED_OUT, reason, child.output.text) from None
        except ChildEndedError as end:
            if end.code == -9 and _kernel_kills() > kills:
                reason = f"killed by the kernel {doing}: the machine ran out of memory"
                raise _EndError(Status.OUT_OF_MEMORY, reason, child.output.text) from None
            raise _EndError(Status.CRASHED, f"{end.reason} {doing}", child.output.text) from None
        if "status" in answer:
            child.end()
            when = f"{doing}, " if answer["status"] == Status.WRONG and doing == TIMED else ""
            raise _EndError(Status(answer["status"]), when + answer["reason"], child.output.text)
        return answer

    def _admit(self, job: Planned, device: Device, judges: Judges) -> Candidate:
        """First calls, verdict, memory. Raises `_EndError` where the cell ends here."""
        self._say(f"verifying {job.cell.implementation} on {job.cell.problem}")
        patient = self._side(job.cell).patient
        canary = patient.start(WORKER)
        try:
            message = self._message("canary", job, device) | {"cores": self._place(job, device)}
            answer = self._ask(canary, message, "in its first calls")
            canary.say({"op": "memory"})  # while the judge judges
            accuracy = judges[patient].verdict(answer)
            memory = Memory(**self._answer(canary, "while its memory was measured"))
        finally:
            canary.leave()
        course = self._course(answer["call_s"])
        return Candidate(
            planned=job, answer=answer, accuracy=accuracy, memory=memory, course=course, canary=canary
        )

    def _place(self, job: Planned, device: Device) -> list[int]:
        """Cores for a job, as many as it has threads; empty where it may be anywhere."""
        return environment.place(job.cell.threads, self._random) if device.kind == "cpu" else []

    def _course(self, call_s: float) -> Course:
        plan = self.plan
        return Course(call_s=call_s, budget_s=plan.budget_s, launches=plan.launches, width=plan.width)

    def _candidate(self, admitted: Candidate, job: Planned, device: Device) -> Candidate:
        """A course of its own for one mode of the cache. Raises `_EndError` where it cannot be had."""
        memory, size = admitted.memory, device.cache_bytes
        course = self._course(admitted.answer["call_s"])
        if job.cell.cache == "cold" and self.plan.launches:
            if not size:
                raise _EndError(Status.UNSUPPORTED, NO_CACHE)
            caching = caches.cold(
                job.problem,
                memory,
                cache_bytes=size,
                limit=self._limit(device),
                call_s=course.call_s,
                budget_s=course.budget_s / course.launches,
            )
        else:
            caching = caches.warm(job.problem, memory, size)
        return replace(admitted, planned=job, course=course, caching=caching)

    def _gone(self, canary: Child) -> None:
        """Wait for its end; what it leaves behind is a failure."""
        if left := canary.end().left:
            noun = "process" if len(left) == 1 else "processes"
            reason = f"left {len(left)} {noun} running: {', '.join(left)}"
            raise _EndError(Status.FAILED, reason, canary.output.text)

    # ------------------------------------------------------------ timed launches

    def _cohorts(self, candidates: Sequence[Candidate], limit: int) -> list[list[Candidate]]:
        """Groups whose memory fits together within `limit` bytes.

        Each holds the baseline of each mode of the cache, so that ratios can be paired; what does not fit beside
        them stands alone.
        """
        if not candidates:
            return []
        modes: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            modes.setdefault(candidate.planned.cell.cache, []).append(candidate)
        baselines = [
            next((c for c in of if c.planned.cell.implementation == self.plan.baseline), of[0])
            for of in modes.values()
        ]

        def need(*several: Candidate) -> int:
            context = 0 if baselines[0].planned.cell.device == "cpu" else CONTEXT_BYTES
            return sum(
                c.memory.input_bytes
                + c.memory.output_bytes
                + c.memory.workspace_bytes
                + c.caching.bytes
                + context
                for c in several
            )

        if len(modes) > 1 and need(*baselines) > limit:
            return [cohort for of in modes.values() for cohort in self._cohorts(of, limit)]
        cohorts, alone = [[*baselines]], []
        for candidate in candidates:
            if candidate in baselines:
                continue
            if need(*baselines, candidate) > limit:
                alone.append([candidate])
                continue
            if need(*cohorts[-1], candidate) > limit:
                cohorts.append([*baselines])
            cohorts[-1].append(candidate)
        return cohorts + alone

    def _timed(self, candidates: list[Candidate], device: Device, judges: Judges) -> Iterator[Result]:
        cohorts = self._cohorts(candidates, self._limit(device))
        ended: dict[Key, _EndError] = {}
        for candidate in candidates:
            with self._catch(candidate, [], ended):
                self._gone(candidate.canary)
        rounds = itertools.count(self._rounds_before(candidates))
        for launch in range(self.plan.launches):
            if launch and self._out_of_time():
                break
            for cohort in cohorts:
                racing = [c for c in cohort if c.planned.cell.key not in ended]
                cores = self._place(cohort[0].planned, device)
                self._random.shuffle(racing)
                for candidate in list(racing):
                    candidate.course.begin(launch)
                    with self._catch(candidate, racing, ended):
                        self._launch(candidate, device, cores)
                active = list(racing)
                while active:
                    self._random.shuffle(active)
                    round_ = next(rounds)
                    for candidate in list(active):
                        with self._catch(candidate, active, ended):
                            self._block(candidate, round_)
                            if candidate.course.enough(hurry=self._out_of_time()):
                                active.remove(candidate)
                for candidate in racing:
                    if candidate.planned.cell.key not in ended:
                        with self._catch(candidate, [], ended):
                            self._check(candidate, judges, device, rounds)
        for candidate in candidates:
            job = candidate.planned
            end = ended.get(job.cell.key)
            yield self._row(job, end, candidate) if end else self._finished(candidate)

    @contextlib.contextmanager
    def _catch(
        self, candidate: Candidate, racing: list[Candidate], ended: dict[Key, _EndError]
    ) -> Iterator[None]:
        try:
            yield
        except _EndError as end:
            ended[candidate.planned.cell.key] = end
            self._dismiss(candidate)
            if candidate in racing:
                racing.remove(candidate)

    def _launch(self, candidate: Candidate, device: Device, cores: list[int]) -> None:
        job = candidate.planned
        self._say(f"timing {job.cell.implementation} on {job.cell.problem}")
        candidate.child = self._side(job.cell).server.start(WORKER)
        caching = candidate.caching
        answer = self._ask(
            candidate.child,
            self._message("ready", job, device)
            | {"copies": caching.copies, "flush_bytes": caching.flush_bytes, "cores": cores},
            "before it was timed",
        )
        candidate.child.pause()
        if answer["input_bytes"] < caching.copies * candidate.memory.input_bytes:
            raise _EndError(Status.FAILED, "the copies of its inputs share memory, so its cache is not cold")
        candidate.course.rest_s = answer["rest_s"]

    def _block(self, candidate: Candidate, round_: int, times: int = 1) -> None:
        """Take one block, `times` as long as usual."""
        child, course = candidate.child, candidate.course
        assert child is not None
        pace = course.pace
        warm = pace.warm or int(len(course.blocks) == course.first)  # a process's first call is never timed
        request = {"inner": pace.inner, "samples": pace.samples * times, "warm": warm}
        running = environment.running()  # all jobs are stopped now
        child.resume()
        start = time.perf_counter()
        answer = self._ask(child, {"op": "block", "pace": request}, "while it was timed")
        elapsed = time.perf_counter() - start
        child.pause()
        taken = Taken(**{**answer, "seconds": tuple(answer["seconds"]), "flagged": tuple(answer["flagged"])})
        if min(taken.seconds) <= 0:
            raise _EndError(Status.IMPOSSIBLE, "the job's clock stood still while it was timed")
        device = candidate.planned.cell.device
        top = max(self._top_clocks.get(device, 0.0), taken.sm_clock_hz or 0.0)
        course.top_clock_hz = self._top_clocks[device] = top
        course.add(taken, elapsed, round_, running)

    def _rounds_before(self, candidates: Sequence[Candidate]) -> int:
        """How many the problem had in an earlier part of the run: none of its blocks is paired with one of now."""
        ours = {(c.planned.cell.problem, c.planned.cell.device) for c in candidates}
        before = (row for row in self.done.values() if (row.cell.problem, row.cell.device) in ours)
        return max((block.round + 1 for row in before for block in row.blocks), default=0)

    def _check(self, candidate: Candidate, judges: Judges, device: Device, rounds: Iterator[int]) -> None:
        """Judge an output that the timer saw, and one for new values in the same storage."""
        child, course = candidate.child, candidate.course
        assert child is not None
        for look in range(1, SECOND_LOOKS + 1):  # on a busy machine every exchange may have been late
            if course.unaccounted() is None or (look > 1 and course.accounts[-1][1] > LONG_LOOK_S):
                break
            self._block(candidate, next(rounds), 2**look)
        child.resume()
        answer = self._ask(child, {"op": "check"}, TIMED)
        child.leave()
        if answer.get("energy_j") is not None:
            course.note_energy(answer["energy_j"])
        judge = judges[self._side(candidate.planned.cell).patient]
        accuracy = judge.verdict(answer, f"{TIMED}, ")
        candidate.accuracy = worst([candidate.accuracy, accuracy])
        if reason := course.unaccounted() or self._too_fast(candidate, device):
            raise _EndError(Status.IMPOSSIBLE, reason)

    def _dismiss(self, candidate: Candidate) -> None:
        if candidate.child is not None:
            candidate.child.end()
            candidate.child = None

    def _finished(self, candidate: Candidate) -> Result:
        answer = candidate.answer
        if not self.plan.launches:
            return Result(
                cell=candidate.planned.cell,
                status=Status.OK,
                accuracy=candidate.accuracy,
                memory=candidate.memory,
                kernel=answer["kernel"],
            )
        timing, floor = (
            candidate.course.timing(answer["setup_s"], answer["first_call_s"]),
            self._floor(candidate),
        )
        return Result(
            cell=candidate.planned.cell,
            status=Status.OK,
            accuracy=candidate.accuracy,
            timing=replace(
                timing,
                cache_method=candidate.caching.method,
                floor_s=floor.seconds if floor else None,
            ),
            memory=candidate.memory,
            blocks=tuple(candidate.course.blocks),
            kernel=answer["kernel"],
        )


class _Judge:
    """The judge's process, which works out what is right while the first canary runs."""

    def __init__(self, runner: Runner, server: ForkServer, start: Mapping[str, Any]) -> None:
        self._runner = runner
        self._server = server
        self._start = start
        self._begin()

    def _begin(self) -> None:
        self._child: Child | None = self._server.start(JUDGE)
        self._child.say(self._start)
        self._ready = False

    def verdict(self, handed: Mapping[str, Any], when: str = "") -> Accuracy:
        """The worst accuracy over all outputs that a worker handed over, with what it says of their bits. Raises `_EndError` where one is wrong or cannot be judged."""
        found = []
        try:
            if self._child is None:
                self._begin()
            assert self._child is not None
            self._child.resume()
            if not self._ready:
                self._answer(self._child)
                self._ready = True
            for name, path in handed["outputs"].items():
                kind = "normal" if name == "timed" else name
                self._child.say({"op": "judge", "path": path, "kind": kind})
                answer = self._answer(self._child)
                if answer["accuracy"]:
                    found.append(Accuracy(**answer["accuracy"]))
                if answer["wrong"]:
                    reason = f"{when}{answer['wrong']} ({kind} inputs)"
                    raise _EndError(Status.WRONG, reason, accuracy=worst(found))
        finally:
            if self._child is not None:
                self._child.pause()
        return replace(worst(found), **handed["bits"])

    def _answer(self, child: Child) -> dict[str, Any]:
        try:
            return child.answer(self._runner._patience(JUDGE_TIMEOUT_S))
        except (ChildEndedError, ChildTimeoutError) as error:
            self.end()
            why = error.reason if isinstance(error, ChildEndedError) else "it took too long"
            reason = f"the answer could not be verified: {why}"
            if isinstance(error, ChildTimeoutError):
                raise self._runner._late(Status.FAILED, reason, child.output.text) from None
            raise _EndError(Status.FAILED, reason, child.output.text) from None

    def end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def _kernel_kills() -> int:
    """How often the kernel has killed a process for memory since it booted."""
    try:
        with open("/proc/vmstat") as stat:
            return sum(int(line.split()[1]) for line in stat if line.startswith("oom_kill "))
    except OSError:
        return 0
