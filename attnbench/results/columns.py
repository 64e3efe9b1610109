"""The columns of `results.csv`: one table makes the file, its reader and `results/README.md`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of `results.csv`."""

    name: str
    kind: type[str] | type[int] | type[float]
    unit: str
    meaning: str


def _columns(table: str) -> tuple[Column, ...]:
    kinds = {"text": str, "integer": int, "number": float}
    cells = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return tuple(Column(name=n, kind=kinds[k], unit=u, meaning=m) for n, k, u, m in cells)


COLUMNS = _columns("""
schema           | integer |        | version of this table's columns
run_id           | text    |        | the run, as in `run.json`
suite            | text    |        | name of the suite, or `problem` for one given on the command line
problem          | text    |        | canonical text of the problem, which `attnbench run --problem` takes back
implementation   | text    |        | what computed it
plugin           | text    |        | which plugin brought the implementation
versions         | text    |        | distributions that the implementation requires, with versions
device           | text    |        | `cpu` or `cuda:N`
device_name      | text    |        | the device's model
threads          | integer |        | CPU threads that the implementation may use
cache            | text    |        | `warm`: caches as the previous call left them; `cold`: inputs not in the cache
clock            | text    |        | `wall`: the host's clock; `events`: CUDA events; `graph`: a CUDA graph of several calls
preset           | text    |        | `quick`, `default` or `gate`: how long each cell is measured; `none`: it is only verified
protocol_version | integer |        | numbers of different protocols may not be compared
seed             | integer |        | of the inputs and of the order of measuring
mechanism        | text    |        | how weights come from q and k
batch            | integer |        | B, members of the batch
seqlen_q         | integer | tokens | Sq, query tokens; empty where the members of the batch differ
seqlen_kv        | integer | tokens | Sk, key/value tokens; empty where the members of the batch differ
heads_q          | integer |        | Hq, query heads
heads_kv         | integer |        | Hk, key/value heads
head_dim         | integer |        | D, head dimension of q and k
head_dim_v       | integer |        | Dv, head dimension of v and of the output
dtype            | text    |        | element type of q and of the output
kv_dtype         | text    |        | element type of k and v
mask             | text    |        | which keys a query may attend to
modifiers        | text    |        | changes of the scores before the softmax, joined by `+`
layout           | text    |        | how the tokens of the batch lie in memory
direction        | text    |        | what one timed call computes
status           | text    |        | how the cell ended; only `ok` rows have times
reason           | text    |        | why the status is not `ok`
median_s         | number  | s      | time of one call: exp of the location on the log scale that the interval is built on
ci95_low_s       | number  | s      | lower end of the 95 % interval of `median_s`; empty where there were too few blocks
ci95_high_s      | number  | s      | upper end of the 95 % interval of `median_s`
p20_s            | number  | s      | 20th percentile of the samples
p80_s            | number  | s      | 80th percentile of the samples
min_s            | number  | s      | smallest sample
mad_s            | number  | s      | median absolute deviation of the samples
n                | integer |        | samples taken, flagged ones included
n_flagged        | integer |        | samples during which the system took the processor away; they do not count
rounds           | integer |        | blocks of samples, interleaved with the other implementations of the problem
launches         | integer |        | fresh processes
inner            | integer |        | calls in one sample
stop_reason      | text    |        | why measuring ended
setup_s          | number  | s      | time of `prepare` in the first process; not part of `median_s`
first_call_s     | number  | s      | time of the first call in the first process; not part of `median_s`
flops            | number  |        | floating-point operations of the two matrix products, unmasked pairs only, and what a mechanism does beside them
least_bytes      | integer | B      | bytes that any implementation must move: each input read once, each output written once
flops_per_s      | number  | 1/s    | `flops` / `median_s`
bytes_per_s      | number  | B/s    | `least_bytes` / `median_s`
input_bytes      | integer | B      | inputs of one call
output_bytes     | integer | B      | outputs of one call
workspace_bytes  | integer | B      | peak during a call in the steady state, less inputs and outputs
memory_method    | text    |        | `rss`: peak resident memory; `cuda`: torch's allocator; `own`: the library's counter
err_row          | number  |        | largest relative L2 error of an output row against the float64 oracle
err_rms          | number  |        | relative L2 error of the whole output
err_max          | number  |        | largest absolute error of an element
cosine           | number  |        | cosine of the output with the oracle's
yardstick_row    | number  |        | `err_row` of a plain computation in the problem's own dtype, floored
yardstick_rms    | number  |        | `err_rms` of the same computation, floored
checked_share    | number  |        | share of the output's rows that were compared with the oracle's
kernel           | text    |        | which kernel ran, where it can be known
repro            | text    |        | a command that runs just this row again
host_enqueue_s   | number  | s      | CUDA: the host's time to launch one call
end_to_end_s     | number  | s      | CUDA: one call on an idle device, from before it to its end, by the host's clock
device_delta_bytes | integer | B      | CUDA: by how much the device's free memory fell over the call, whoever took it
grade            | text    |        | how quiet the measurement was: `A`, `B` or `C`
noise            | text    |        | why the grade is not `A`, with advice
drift            | number  |        | relative change of the time from the first third of the rounds to the last
cache_method     | text    |        | how the cache was emptied: `rotation` of copies, `flush`; `exceeds cache` where one call's tensors do not fit into it
floor_s          | number  | s      | least time that the device's measured peaks allow, where `attnbench peaks` knows them
sm_clock_hz      | number  | Hz     | CUDA: clock of the multiprocessors, median of the blocks
power_w          | number  | W      | CUDA: power, median of the blocks
temperature_c    | number  | °C     | CUDA: temperature, median of the blocks
throttle         | text    |        | CUDA: reasons for which the device lowered its clock, joined by `+`
energy_j         | number  | J      | CUDA: energy of one call, where NVML counts it
err_lse          | number  |        | largest absolute error of the log-sum-exp, where the implementation offers it
deterministic    | text    |        | whether repeated calls on the same inputs gave the same bits: `yes`, `no`, or empty
batch_invariant  | text    |        | whether a member of the batch has the same bits when it is computed alone, likewise
approximation    | text    |        | what is approximated, in words; empty for an exact computation
""")
KINDS = {column.name: column.kind for column in COLUMNS}


def columns_markdown() -> str:
    """The table of columns in `results/README.md`."""
    kinds = {str: "text", int: "integer", float: "number"}
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {kinds[c.kind]} | {c.unit} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines)
