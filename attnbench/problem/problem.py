"""`Problem`, the key of every table, and how it is made from its keys and read from its text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from attnbench.errors import ProblemError
from attnbench.problem.batches import LARGEST_BATCH, Sequences, parse_requests, requests_text
from attnbench.problem.directions import Direction
from attnbench.problem.dtypes import Descale, DType
from attnbench.problem.keys import PROBLEM_KEYS, convert, parse_words
from attnbench.problem.layouts import Dense, Layout, Paged, parse_layout
from attnbench.problem.masks import Causal, CausalTopLeft, Full, Mask, parse_mask
from attnbench.problem.mechanisms import Dot, Mechanism, Softmax, parse_mechanism
from attnbench.problem.modifiers import Modifier, parse_modifiers
from attnbench.problem.parameters import Parameter
from attnbench.problem.variants import suggestion


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One attention computation. Two equal problems are the same row of every table.

    Raises `ProblemError` where no such problem can exist.
    """

    sequences: Sequences
    """(Sq, Sk) of each member of the batch."""
    heads_q: int
    heads_kv: int
    head_dim: int
    """D, of q and k."""
    head_dim_v: int
    """Dv, of v and the output."""
    dtype: DType
    kv_dtype: DType
    """Element type of k and v where they are stored in another one than q."""
    descale: Descale = Descale.TENSOR
    """What has a factor of its own, of q, k and v that are quantised; `tensor` where none of them is."""
    mask: Mask = Full()  # noqa: RUF009 - it is frozen
    modifiers: tuple[Modifier, ...] = ()
    scale: float | None = None
    """Factor of q k^T; None is 1 / sqrt(D)."""
    mechanism: Mechanism = Softmax()  # noqa: RUF009 - it is frozen
    layout: Layout = Dense()  # noqa: RUF009 - it is frozen
    direction: Direction = Direction.FORWARD
    dropout: float = 0.0
    """Probability that a weight is dropped."""
    shared_kv: bool = False
    """v is the first Dv columns of k, stored once (absorbed MLA: DeepSeek-V2, 2024, section 2.1)."""

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ProblemError("a problem needs at least one sequence")
        if len(self.sequences) > LARGEST_BATCH:
            raise ProblemError(f"a batch has at most {LARGEST_BATCH:,} members, got {len(self.sequences):,}")
        for q, s in set(self.sequences):
            if q < 0 or s < 0:
                raise ProblemError(f"lengths must not be negative, got {min(q, s)}")
            if q > s and self.appends:
                raise ProblemError(
                    f"layout `{self.layout}` writes the last Sq keys of each member: "
                    f"its Sq must be at most its Sk, got {q} and {s}"
                )
        for name in ("heads_q", "heads_kv", "head_dim", "head_dim_v"):
            if getattr(self, name) < 1:
                raise ProblemError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads_q % self.heads_kv:
            raise ProblemError(
                f"heads_q must be a multiple of heads_kv, got {self.heads_q} and {self.heads_kv}"
            )
        if not 0 <= self.dropout < 1:
            raise ProblemError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        kinds = [modifier.name for modifier in self.modifiers]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ProblemError(f"modifiers name `{twice}` twice")
        if "rotary" in kinds and self.head_dim % 2:
            raise ProblemError(
                f"rotary turns pairs of coordinates: head_dim must be even, got {self.head_dim}"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale):
            raise ProblemError(f"scale must be a finite number other than 0, got {self.scale}")
        factors = (
            (("scale", self.scale), ("cap of softcap", self.softcap)) if self.scale or self.modifiers else ()
        )
        for what, factor in factors:
            if factor is not None and abs(factor) > self.out_dtype.largest:
                raise ProblemError(f"{what} must be finite in {self.out_dtype.value}, got {factor}")
        if self.scale is not None and not self.mechanism.scaled:
            raise ProblemError(f"the {self.mechanism.name} mechanism takes no scale, got {self.scale}")
        if self.shared_kv and self.head_dim_v > self.head_dim:
            raise ProblemError(
                f"shared k and v need head_dim_v <= head_dim, got {self.head_dim_v} > {self.head_dim}"
            )
        if isinstance(self.mask, CausalTopLeft) and all(q == s for q, s in self.sequences):
            object.__setattr__(self, "mask", Causal())  # the same problem, so the same row
        if self.scale is not None and math.isclose(self.scale, self.head_dim**-0.5, rel_tol=1e-12):
            object.__setattr__(self, "scale", None)
        if self.descale is not Descale.TENSOR and not (self.dtype.quantised or self.kv_dtype.quantised):
            object.__setattr__(self, "descale", Descale.TENSOR)

    @property
    def batch(self) -> int:
        return len(self.sequences)

    @cached_property
    def uniform(self) -> tuple[int, int] | None:
        """(Sq, Sk) where all members of the batch have the same, else None."""
        first = self.sequences[0]
        return first if self.sequences.count(first) == len(self.sequences) else None

    @property
    def longest(self) -> tuple[int, int]:
        """The largest Sq and the largest Sk of the batch."""
        return max(q for q, _ in self.sequences), max(s for _, s in self.sequences)

    @cached_property
    def spans(self) -> tuple[tuple[slice, slice], ...]:
        """Where the queries and the keys of each member lie in a packed batch."""
        found, q, k = list[tuple[slice, slice]](), 0, 0
        for sq, sk in self.sequences:
            found.append((slice(q, q + sq), slice(k, k + sk)))
            q, k = q + sq, k + sk
        return tuple(found)

    @property
    def out_dtype(self) -> DType:
        """Element type of the output and of parameters: q's, or bfloat16 where that is quantised."""
        return DType.BFLOAT16 if self.dtype.quantised else self.dtype

    @property
    def stored_apart(self) -> bool:
        """Whether q, k or v are stored in another type than that of the output."""
        return self.kv_dtype is not self.dtype or self.dtype.quantised

    @property
    def appends(self) -> bool:
        """Whether the call writes the last Sq keys of each member into their pages."""
        return isinstance(self.layout, Paged) and self.layout.append == 1

    @property
    def softmax_scale(self) -> float:
        """Factor of q k^T: `scale`, or 1 / sqrt(D); 1 for the mechanism `dot`."""
        if isinstance(self.mechanism, Dot):
            return 1.0
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def modifier(self, name: str) -> Any:
        """The modifier of that name, such as `alibi`; None without it."""
        return next((modifier for modifier in self.modifiers if modifier.name == name), None)

    @property
    def softcap(self) -> float | None:
        """The cap of the modifier `softcap`; None without it."""
        cap: float | None = getattr(self.modifier("softcap"), "cap", None)
        return cap

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Tensors beside q, k and v, of the mechanism and of the modifiers, by their names in `Inputs.extra`."""
        found = self.mechanism.parameters(self)
        for modifier in self.modifiers:
            found |= modifier.parameters(self)
        count = self.heads_kv if self.descale is Descale.HEAD else 1
        stored = {"q": self.dtype, "k": self.kv_dtype} | ({} if self.shared_kv else {"v": self.kv_dtype})
        for name, dtype in stored.items():
            if dtype.quantised:
                found[f"{name}_descale"] = Parameter(shape=(count,), dtype=DType.FLOAT32, learned=False)
        return found

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """Names of the parameters whose gradients a backward pass returns, as `d<name>` after dq, dk and dv."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.learned)

    @property
    def modifiers_text(self) -> str:
        return "+".join(map(str, self.modifiers))

    @cached_property
    def text(self) -> str:
        """The canonical text, free of commas, that `Problem.parse` takes back: the key of every table."""
        uniform = self.uniform
        if uniform is None:
            parts = [f"requests={requests_text(self.sequences)}"]
        elif uniform[0] == uniform[1]:
            parts = [f"batch={self.batch} seqlen={uniform[0]}"]
        else:
            parts = [f"batch={self.batch} seqlen_q={uniform[0]} seqlen_kv={uniform[1]}"]
        if self.heads_q == self.heads_kv:
            parts.append(f"heads={self.heads_q}")
        else:
            parts.append(f"heads_q={self.heads_q} heads_kv={self.heads_kv}")
        parts.append(f"head_dim={self.head_dim}")
        if self.head_dim_v != self.head_dim:
            parts.append(f"head_dim_v={self.head_dim_v}")
        parts.append(f"dtype={self.dtype.value}")
        if self.kv_dtype != self.dtype:
            parts.append(f"kv_dtype={self.kv_dtype.value}")
        if self.descale is not Descale.TENSOR:
            parts.append(f"descale={self.descale.value}")
        parts.append(f"mask={self.mask}")
        if self.modifiers:
            parts.append(f"modifiers={self.modifiers_text}")
        if self.scale is not None:
            parts.append(f"scale={self.scale!r}")
        if not isinstance(self.mechanism, Softmax):
            parts.append(f"mechanism={self.mechanism}")
        if not isinstance(self.layout, Dense):
            parts.append(f"layout={self.layout}")
        if self.direction is not Direction.FORWARD:
            parts.append(f"direction={self.direction.value}")
        if self.dropout:
            parts.append(f"dropout={self.dropout!r}")
        if self.shared_kv:
            parts.append("shared_kv=true")
        return " ".join(parts)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """The problem that `text` means: words `key=value` with the keys of a suite's `problems:`.

        Raises `ProblemError`.
        """
        return problem_from(parse_words(text))


@lru_cache(maxsize=256)
def _member(kind: type[StrEnum], value: str, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ProblemError(f"unknown {what} `{value}`", hint=suggestion(value, [*kind])) from None


_REQUIRED = object()


def problem_from(values: Mapping[str, Any]) -> Problem:
    """The problem that a value per key of `PROBLEM_KEYS` means; texts are converted, keys may be left out.

    Raises `ProblemError` for an unknown or missing key, two keys that contradict each other, or a value
    that cannot be.
    """
    left = {}
    for key, value in values.items():
        if key not in PROBLEM_KEYS:
            raise ProblemError(f"unknown key `{key}`", hint=suggestion(key, PROBLEM_KEYS))
        left[key] = convert(key, value) if isinstance(value, str) else value

    def take(key: str, default: Any = _REQUIRED) -> Any:
        value = left.pop(key, default)
        if value is _REQUIRED:
            raise ProblemError(f"a problem needs `{key}`", hint="or a `model:` that brings it")
        return value

    def pair(both: str, first: str, second: str, fallback: bool) -> tuple[int, int]:
        if both in left and (first in left or second in left):
            raise ProblemError(f"`{both}` sets `{first}` and `{second}`: give it or them, not both")
        if both in left:
            value = take(both)
            return value, value
        if first not in left and second not in left:
            raise ProblemError(f"a problem needs `{both}`", hint="or a `model:` that brings it")
        one = take(first)
        return one, take(second, one if fallback else _REQUIRED)

    if "requests" in left:
        clash = next((k for k in ("batch", "seqlen", "seqlen_q", "seqlen_kv") if k in left), None)
        if clash:
            raise ProblemError(f"`requests` and `{clash}` both say how long the sequences are: give one")
        sequences = parse_requests(take("requests"))
    else:
        batch = left.pop("batch", 1)
        if not 1 <= batch <= LARGEST_BATCH:
            raise ProblemError(f"batch must be from 1 to {LARGEST_BATCH:,}, got {batch:,}")
        lengths = pair("seqlen", "seqlen_q", "seqlen_kv", False)
        for name, length in zip(("seqlen_q", "seqlen_kv"), lengths, strict=True):
            if length < 1:
                raise ProblemError(f"{name} must be at least 1, got {length}")
        sequences = (lengths,) * batch
    heads_q, heads_kv = pair("heads", "heads_q", "heads_kv", True)
    head_dim = take("head_dim")
    dtype = _member(DType, left.pop("dtype", "float32"), "dtype")
    return Problem(
        sequences=sequences,
        heads_q=heads_q,
        heads_kv=heads_kv,
        head_dim=head_dim,
        head_dim_v=left.pop("head_dim_v", head_dim),
        dtype=dtype,
        kv_dtype=_member(DType, left.pop("kv_dtype", dtype), "dtype"),
        descale=_member(Descale, left.pop("descale", "tensor"), "descale"),
        mask=parse_mask(left.pop("mask", "full")),
        modifiers=parse_modifiers(left.pop("modifiers", "none")),
        scale=left.pop("scale", None),
        mechanism=parse_mechanism(left.pop("mechanism", "softmax")),
        layout=parse_layout(left.pop("layout", "dense")),
        direction=_member(Direction, left.pop("direction", "forward"), "direction"),
        dropout=left.pop("dropout", 0.0),
        shared_kv=left.pop("shared_kv", False),
    )
