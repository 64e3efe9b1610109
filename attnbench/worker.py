"""One implementation on one problem in one process: first calls, outputs for the judge, memory, blocks.

Answers one message at a time; whatever goes wrong in the implementation is an answer too.
"""

import contextlib
import dataclasses
import gc
import io
import itertools
import math
import os
import resource
import traceback
from collections.abc import Collection, Iterator, Mapping
from time import perf_counter
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from attnbench import (
    caches,
    changes,
    clocks,
    costs,
    elements,
    environment,
    inputs,
    measure,
    plugins,
    sensors,
    verify,
)
from attnbench.forkserver import Channel
from attnbench.implementation import Implementation, Inputs, Prepared, Step
from attnbench.problem import Direction, Problem
from attnbench.records import Status
from attnbench.units import seconds_text

Answer = dict[str, Any]

torch.save(torch.zeros(1), io.BytesIO())  # its first call imports, once here instead of in every child
_POOLS = ThreadpoolController()  # looks through all loaded libraries

_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "out of memory", "not enough memory")

REPEATS = 2
"""Further calls on the same inputs, whose bits are compared, in the canary and after the blocks of each launch."""
REPEATS_S = 0.1
"""What they may take in all; the canary makes one in any case, unless a call takes `REPEAT_S`."""
REPEAT_S = 2.0
_POISON_ELEMENTS = 2**18
"""Up to 16 copies of a small output, and two of a large one."""

_PAIRS, _MISSED, _MISSED_SHARE = 62, 3, 0.2
"""Pairs of calls with new and with known values, and how many of those so far may be otherwise: so many, and this share.
An honest implementation, in whose pairs either call may be the slower, comes to the last one 13 times in 10^6 at the most."""
_SAVED = 1.5
"""An implementation that answers known values faster by more than this factor ..."""
_SAVED_S = 20e-6
"""... and by more than this remembers answers."""
_REPEATED, _REPEATED_S = 256, 0.1
"""Calls between those of a pair, and their time, at the most: it may remember only what comes often."""
_HARD = resource.getrlimit(resource.RLIMIT_DATA)[1]
"""Negative where there is none."""
_WORK_S = 5e-3
"""Between two looks at the energy counter."""


class WrongError(Exception):
    """What the implementation returned or did cannot be right; the message says why."""


class ImpossibleError(Exception):
    """The times cannot be those of the work; the message says why."""


def serve(channel: Channel) -> None:
    """Answer the runner's messages until it closes the channel or says `exit`."""
    job: Job | None = None
    while (message := channel.receive()) is not None and message["op"] != "exit":
        try:
            if job is None:
                job = Job(message)
            answer = getattr(job, message["op"])(message)
        except BaseException as error:  # SystemExit and KeyboardInterrupt of a plugin are rows too
            resource.setrlimit(resource.RLIMIT_DATA, (_HARD, _HARD))  # telling takes memory too
            status, reason = explain(error)
            traceback.print_exception(error)
            answer = {"status": status, "reason": reason}
            del error
        channel.send(answer)


def explain(error: BaseException) -> tuple[Status, str]:
    """The status and the reason in words for an exception out of an implementation."""
    text = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, WrongError):
        return Status.WRONG, text
    if isinstance(error, ImpossibleError):
        return Status.IMPOSSIBLE, text
    if isinstance(error, clocks.CaptureError):
        return Status.UNSUPPORTED, text
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    lowered = text.lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in lowered for words in _OUT_OF_MEMORY)
    ):
        start = lowered.find("defaultcpuallocator")
        return Status.OUT_OF_MEMORY, text[max(start, 0) :] or f"{type(error).__name__} at {place}"
    return Status.FAILED, f"{type(error).__name__}: {text or 'no message'} ({place})"


def stay(cores: Collection[int]) -> None:
    """Keep this process, and the threads that it will start, on these cores; anywhere where there are none."""
    if cores:
        os.sched_setaffinity(0, cores)


class Job:
    """The implementation under test with its inputs, and the operations that the runner may ask for."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.problem = Problem.parse(message["problem"])
        self.device: str = message["device"]
        self.seed: int = message["seed"]
        self.folder: str = message["folder"]
        self.threads: int = message["threads"]
        stay(message.get("cores", []))
        self._confine(message["memory_bytes"], self.threads)
        self.implementation: Implementation = plugins.load(message["target"])[message["implementation"]]
        self.sample = inputs.sample(self.problem, work=message["work"], seed=self.seed)
        self.inputs: Inputs = inputs.make(
            self.problem,
            kind="normal",
            seed=self.seed,
            device=self.device,
            qkv_format=self.implementation.qkv_format,
        )
        self.prepared: Prepared
        self.clock = clocks.clock(message["clock"], self.device)
        self.before: clocks.Before = clocks.nothing
        self.batch_invariance: bool = message["batch_invariance"]
        self.sensors: sensors.Sensors | None = None
        self.last: Any = None
        self.call_s = 0.0
        """Of the last call, or the last block's shortest one."""

    def _confine(self, memory_bytes: int, threads: int) -> None:
        torch.set_num_threads(1)  # until `prepare`: a first parallel region costs more than it saves here
        _POOLS.limit(limits=threads, user_api="blas")
        if self.device == "cpu":
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                score.write("1000")  # if the kernel must kill something, then this
            with open("/proc/self/statm") as statm:
                used = int(statm.read().split()[5]) * resource.getpagesize()
            limit = used + memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit if _HARD < 0 else min(limit, _HARD), _HARD))
        else:
            torch.cuda.set_device(self.device)  # events are recorded on the current device
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), self.device)

    def _synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def _prepare(self) -> float:
        torch.set_num_threads(self.threads)
        start = perf_counter()
        self.prepared = self._prepared_for(self.inputs)
        self._synchronize()
        return perf_counter() - start

    def _prepared_for(self, given: Inputs) -> Prepared:
        prepared = self.implementation.prepare(self.problem, given)
        return prepared if isinstance(prepared, Prepared) else Prepared(step=prepared)

    @contextlib.contextmanager
    def _one_thread(self) -> Iterator[None]:
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def _call(self) -> Any:
        start = perf_counter()
        raw = self.prepared.step()
        self._synchronize()
        self.call_s = perf_counter() - start
        return raw

    # ------------------------------------------------------------ operations

    def canary(self, message: Mapping[str, Any]) -> Answer:
        """Prepare, call, and hand the outputs for every kind of inputs to the judge."""
        if self.sample.share < 1:
            inputs.mask_dout(self.inputs, self.problem, self.sample, self.implementation.qkv_format)
        before = changes.promised(self.inputs, self.problem)
        self._poison()
        setup_s = self._prepare()
        self._poison()  # `prepare` may have used up what was
        raw = self._call()
        first_call_s = self.call_s
        outputs = {"normal": self._output("normal", raw)}
        invariant = self._invariant(raw)
        deterministic = self._deterministic(raw, max(self._repeats(), int(self.call_s < REPEAT_S)))
        del raw
        self._unchanged(before)
        for kind in inputs.KINDS[1:]:
            outputs[kind] = self._renewed(kind)
        return {
            "setup_s": setup_s,
            "first_call_s": first_call_s,
            "call_s": self.call_s,
            "kernel": self.prepared.kernel,
            "outputs": outputs,
            "bits": {"deterministic": deterministic, "batch_invariant": invariant},
        }

    def memory(self, message: Mapping[str, Any]) -> Answer:
        """Measure the memory of one call after the canary's; calls are slow from then on."""
        measure.return_memory_eagerly()
        held = measure.total_bytes(self.inputs.tensors)
        return dataclasses.asdict(measure.memory(self.prepared, self.device, held, self._bytes))

    def ready(self, message: Mapping[str, Any]) -> Answer:
        """Prepare for blocks: as many copies as the message says, and what empties the cache between samples."""
        gc.collect()
        gc.disable()
        self.checksum = changes.promised(self.inputs, self.problem)
        self.copies = [self.inputs, *(_copy(self.inputs) for _ in range(1, message["copies"]))]
        with self.clock.preparing():
            self._prepare()
            self.turns = [self.prepared, *map(self._prepared_for, self.copies[1:])]
        for copy in self.copies:  # what `prepare` has appended
            inputs.spoil(copy, self.problem)
        self._synchronize()
        self.step: Step = self.prepared.step
        if len(self.copies) > 1:
            self.step = rotation = caches.Rotation([prepared.step for prepared in self.turns])
            for _ in self.turns:  # a copy's first call is never timed, and its output takes fresh memory
                rotation()
        rest_s = 0.0
        if message["flush_bytes"]:
            self.before = caches.Flush(message["flush_bytes"], self.device)
            self.before()
            self._synchronize()
            start = perf_counter()
            self.before()
            self._synchronize()
            rest_s = perf_counter() - start
        if self.device != "cpu":
            self.sensors, _ = sensors.found(torch, self.device)
        held = [tensor for copy in self.copies for tensor in copy.tensors]
        return {"input_bytes": caches.distinct_bytes(held), "rest_s": rest_s}

    def block(self, message: Mapping[str, Any]) -> Answer:
        """Take one block."""
        self.last = None
        before = environment.waited_s()
        taken = self.clock.take(self.step, clocks.Pace(**message["pace"]), self.before)
        after = environment.waited_s()
        self.last, self.call_s = taken.last, min(taken.seconds)
        waited = None if before is None or after is None else max(0.0, after - before)
        start = perf_counter()
        seen = dataclasses.asdict(self.sensors.read()) if self.sensors else {}
        busy_s = taken.busy_s + perf_counter() - start
        return dataclasses.asdict(
            dataclasses.replace(taken, last=None, waited_s=waited, busy_s=busy_s, **seen)
        )

    def check(self, message: Mapping[str, Any]) -> Answer:
        """Hand over the output that the last sample returned, and one for new values in the same storage.

        In between the energy of a call is counted, where it can be.
        """
        if isinstance(self.step, caches.Rotation):  # the copy that gave it is the one to go on with
            self.inputs, self.prepared = self.copies[self.step.place], self.turns[self.step.place]
        for copy in self.copies:
            self._unchanged(self.checksum, copy)
        known_s = self.call_s
        values = [tensor for tensor in (self.inputs.v, self.inputs.v_new) if tensor is not None]
        with self._one_thread():
            for tensor in values:  # whoever computes only when read gives another answer
                elements.multiply(tensor, -1)
        timed = self._output("timed", self.last)
        with self._one_thread():
            for tensor in values:
                elements.multiply(tensor, -1)
        if self.prepared.refresh:  # a graph that was kept does not take inputs that were written meanwhile
            self.prepared.refresh()
        deterministic = self._deterministic(self.last, self._repeats())
        self.last = None
        energy_j = None
        if self.sensors and self.before is clocks.nothing:  # a flush takes energy of its own
            energy_j = self.sensors.joules(self._work)
        if isinstance(self.step, caches.Rotation):
            self.step.kept.clear()
        peaked = self._renewed("peaked")
        if self._saves(self.call_s, known_s):
            self._forgets()
        return {
            "outputs": {"timed": timed, "peaked": peaked},
            "bits": {"deterministic": deterministic},
            "energy_j": energy_j,
        }

    def _work(self) -> int:
        calls = self.clock.repeat(self.step, max(1, round(_WORK_S / max(self.call_s, 1e-9))))
        self._synchronize()
        return calls

    def _saves(self, new_s: float, known_s: float) -> bool:
        return new_s > _SAVED * known_s + _SAVED_S

    def _forgets(self) -> None:
        """Raise `ImpossibleError` where calls with new values take longer than calls with the same again.

        In each pair stands the faster of two calls of either sort, because a neighbour may slow one. For an honest
        implementation both sorts could change places, so that in each pair either has an even chance of being the slower. A few
        pairs may be otherwise, because an interruption hides what was saved. Before each call, all inputs are read by all
        threads; between both sorts the same values are computed again and again, for those that remember only what comes often.
        """
        graph = isinstance(self.clock, clocks.CudaGraph)  # it would replay what `refresh` has replaced
        clock = clocks.clock("events", self.device) if graph else self.clock
        pace = clocks.Pace(inner=1, samples=1, warm=0)
        given = self.inputs
        tensors: list[tuple[torch.Tensor | None, ...]]
        tensors = [(given.q,), (given.k, given.k_new), (given.v, given.v_new)]
        repeats = max(1, min(_REPEATED, round(_REPEATED_S / max(self.call_s, 1e-9))))
        now: tuple[float, ...] = (1.0, 1.0, 1.0)

        def once(alone_s: float = 0.0) -> float:
            end = perf_counter() + alone_s
            while (
                perf_counter() < end
            ):  # as long as new values take, in which all other threads may have fallen asleep
                pass
            if self.prepared.refresh:
                self.prepared.refresh()
            inputs.checksum(self.inputs)
            return min(clock.take(self.prepared.step, pace).seconds)

        missed, told = 0, ""
        factors = itertools.islice(itertools.product((1.0, 0.5, 2.0, 0.25, 4.0), repeat=3), 1, None)
        for pairs in range(1, 1 + _PAIRS):
            seconds: list[float] = []
            for new in itertools.islice(factors, 2):
                start = perf_counter()
                with self._one_thread():
                    for several, factor, before in zip(tensors, new, now, strict=True):
                        for tensor in several:
                            if tensor is not None:
                                elements.multiply(tensor, factor / before)
                now, alone_s = new, perf_counter() - start
                seconds.append(once())
            clock.repeat(self.prepared.step, repeats)
            new_s, known_s = min(seconds), min(once(alone_s), once(alone_s))
            if self._saves(new_s, known_s):
                told = f"{seconds_text(new_s)} a call with values it had not seen, {seconds_text(known_s)} with the same again"
            elif (missed := missed + 1) > _MISSED + _MISSED_SHARE * pairs:
                return
        raise ImpossibleError(told)

    # ------------------------------------------------------------ outputs

    def _shapes(self) -> list[tuple[int, ...]]:
        """Sizes of what a call returns, in any order of axes."""
        p, grads = self.problem, [self.inputs.q, self.inputs.k]
        grads += [] if p.shared_kv else [self.inputs.v]
        grads += [self.inputs.extra[name] for name in p.learned]
        out = (*self.inputs.q.shape[:-1], p.head_dim_v)
        match p.direction:
            case Direction.BACKWARD:
                return [tuple(t.shape) for t in grads]
            case Direction.FORWARD_BACKWARD:
                return [out, *(tuple(t.shape) for t in grads)]
            case _:
                return [out]

    def _poison(self) -> None:
        """Leave NaN in memory that an allocator may hand out again: an output never written shows. So does what is never
        appended: its slots hold something else."""
        dtype = elements.TORCH_DTYPES[self.problem.out_dtype]
        with self._one_thread():
            held = [  # several at once, lest a smaller hole serve the next request
                torch.full(shape, float("nan"), dtype=dtype, device=self.device)
                for shape in self._shapes()
                for _ in range(max(2, min(16, _POISON_ELEMENTS // max(1, math.prod(shape)))))
            ]
            del held
            inputs.spoil(self.inputs, self.problem)

    def _bytes(self, outputs: Any) -> int:
        return measure.total_bytes(outputs if isinstance(outputs, tuple | list) else [outputs])

    def _unchanged(self, before: tuple[tuple[int, ...], ...], given: Inputs | None = None) -> None:
        with self._one_thread():
            wrong = changes.broken(given or self.inputs, self.problem, before)
        if wrong:
            raise WrongError(wrong)

    def _renewed(self, kind: str) -> str:
        """Outputs for inputs of another kind, written into the same storage."""
        form = self.implementation.qkv_format
        with self._one_thread():
            inputs.overwrite(self.inputs, self.problem, kind=kind, seed=self.seed, qkv_format=form)
            if self.sample.share < 1:
                inputs.mask_dout(self.inputs, self.problem, self.sample, form)
            before = changes.promised(self.inputs, self.problem)
        if self.prepared.refresh:
            self.prepared.refresh()
        self._poison()
        written = self._output(kind, self._call())
        self._unchanged(before)
        return written

    def _repeats(self) -> int:
        return min(REPEATS, int(REPEATS_S / max(self.call_s, 1e-9)))

    def _deterministic(self, raw: Any, repeats: int) -> str:
        """Whether `repeats` further calls on the same inputs return the bits of `raw`; empty without any, and where weights
        are dropped.

        Raises `WrongError` where a further call is not finite, or drops the same weights.
        """
        first = None
        for _ in range(repeats):
            with self._one_thread():
                first = first or inputs.checksums(self._promised(raw))  # before its storage is used again
            self._poison()
            raw_again = self._call()
            with self._one_thread():
                again = self._promised(raw_again)
                same = inputs.checksums(again) == first
                if self.problem.dropout:
                    self._drops_anew(same)
                    return ""
                if same:
                    continue
                if not all(bool(tensor.isfinite().all()) for tensor in again):
                    raise WrongError("the output of a further call is not finite everywhere")
                return "no"
        return "yes" if repeats else ""

    def _drops_anew(self, same: bool) -> None:
        """Raise `WrongError` where two calls returned the same, and not because there is so little to drop."""
        p, pairs = self.problem.dropout, costs.flops(self.problem) / costs.pair_flops(self.problem)
        if same and (p**2 + (1 - p) ** 2) ** pairs < 1e-9:
            raise WrongError("a further call dropped the same weights")

    def _invariant(self, raw: Any) -> str:
        """Whether the first member of the batch has the same bits alone; empty where that was not asked for."""
        if not self.batch_invariance or self.problem.batch == 1 or self.problem.dropout:
            return ""
        of_members = self._found(raw)[: len(inputs.token_outputs(self.problem))]
        first = inputs.checksums(tensor[:1] for tensor in of_members)
        alone = verify.alone(self.implementation, self.problem, self.inputs, self.device)
        if not alone:
            return ""
        return "yes" if inputs.checksums(alone) == first else "no"

    def _found(self, raw: Any) -> tuple[torch.Tensor, ...]:
        """The tensors of an output. Raises `WrongError` where they break the contract."""
        form = self.implementation.qkv_format
        found = verify.inspect(self.prepared.read(raw), self.problem, self.inputs, self.device, form)
        if isinstance(found, str):
            raise WrongError(found)
        return found

    def _promised(self, raw: Any) -> tuple[torch.Tensor, ...]:
        """As `_found`, without what may be anything."""
        table = self.inputs.index.get("block_table")
        return inputs.gapless(self._found(raw), self.problem, self.implementation.qkv_format, table)

    def _output(self, name: str, raw: Any) -> str:
        """Write what the judge needs of an output to a file. Raises `WrongError` where it breaks the contract."""
        found, form = self._found(raw), self.implementation.qkv_format
        table = self.inputs.index.get("block_table")
        with self._one_thread():
            parts = inputs.gapless(found, self.problem, form, table)
            for part, tensor in zip(inputs.outputs(self.problem), parts, strict=True):
                # the judge sees no more than the sample
                if self.sample.share < 1 and not bool(tensor.isfinite().all()):
                    raise WrongError(f"{part}: not everywhere finite")
            picked = inputs.pick(found, self.problem, self.sample, form, table)
        if name == "timed" and self.sample.share < 1:  # sums of the timed call, such as dk, saw all of dout
            picked = {key: value for key, value in picked.items() if key in ("out", "dq")}
        if self.prepared.lse:
            lse = verify.inspect_lse(self.prepared.lse(raw), self.problem, self.device)
            if isinstance(lse, str):
                raise WrongError(lse)
            picked["lse"] = inputs.pick_lse(lse, self.problem, self.sample)
        path = os.path.join(self.folder, f"{os.getpid()}-{name}")
        torch.save(picked, path)
        return path


def _copy(of: Inputs) -> Inputs:
    """The same values in other storage."""
    dout = None if of.dout is None else of.dout.clone()
    extra = {name: tensor.clone() for name, tensor in of.extra.items()}
    index = {name: tensor.clone() for name, tensor in of.index.items()}
    k = of.k.clone()
    v = k[..., : of.v.shape[-1]] if of.shared_kv else of.v.clone()
    k_new, v_new = (None if new is None else new.clone() for new in (of.k_new, of.v_new))
    v_new = k_new[..., : of.v.shape[-1]] if k_new is not None and of.shared_kv else v_new
    return Inputs(q=of.q.clone(), k=k, v=v, dout=dout, extra=extra, index=index, k_new=k_new, v_new=v_new)


def probe(channel: Channel) -> None:
    """Answer one message with the CUDA devices of this machine, their sensors and facts about torch's build."""
    channel.receive()
    found, reason = [], ""
    read = {"cpu": "nothing: NVML reports CUDA devices only"}
    try:
        if torch.version.cuda is None:
            reason = "this build of torch has no CUDA"
        elif not torch.cuda.is_available():
            reason = "torch finds no driver or no device"
        else:
            for index in range(torch.cuda.device_count()):
                facts = torch.cuda.get_device_properties(index)
                found.append(
                    {
                        "kind": "cuda",
                        "index": index,
                        "name": facts.name,
                        "memory_bytes": facts.total_memory,
                        "cache_bytes": getattr(facts, "L2_cache_size", 0),
                        "compute_capability": [facts.major, facts.minor],
                    }
                )
                read[f"cuda:{index}"] = sensors.found(torch, f"cuda:{index}")[1]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    answer = {"devices": found, "reason": reason}
    channel.send({**answer, "facts": {"torch_build": environment.torch_facts(), "sensors": read}})
