"""What is computed: `Problem`, the key of every table, and the values of its axes.

Letters used everywhere: B batch, Sq query tokens, Sk key/value tokens, Hq query heads, Hk key/value
heads, D head dimension of q and k, Dv head dimension of v and of the output. Query i stands at
position p = i + Sk - Sq among the keys, unless a mask's name says otherwise.
"""

import dataclasses
import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache, reduce
from itertools import groupby
from typing import Any, ClassVar, cast

from attnbench.errors import ProblemError


class DType(StrEnum):
    """Element type of q, k, v and the output; `tfloat32` is float32 data whose products may be TF32."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    TFLOAT32 = "tfloat32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3"
    INT8 = "int8"

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return _DTYPE_BYTES[self]


_DTYPE_BYTES = dict(zip(DType, (8, 4, 4, 2, 2, 1, 1), strict=True))


class Direction(StrEnum):
    """What one timed call computes.

    `forward` is the output from inputs that need no gradient, `inference` the same under
    `torch.inference_mode`; `backward` is dq, dk and dv from a stored forward pass;
    `forward_backward` is both in one call.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    FORWARD_BACKWARD = "forward_backward"
    INFERENCE = "inference"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named value with numeric fields; its text is `name` or `name:field=value:...`, free of commas."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(self, field)

    def __str__(self) -> str:
        return _variant_text(self)


def _check_field(variant: Variant, field: "dataclasses.Field[Any]") -> None:
    value = getattr(variant, field.name)
    if value is None:
        if field.default is None:
            return
        raise ProblemError(f"{variant.name} needs a {field.name}")
    low, high = field.metadata.get("range", (1, math.inf))
    whole = field.type in (int, int | None)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "a whole number" if whole else "a number"
        raise ProblemError(f"{field.name} of {variant.name} must be {kind}, got {value!r}")
    if not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ProblemError(f"{field.name} of {variant.name} must be {bound}, got {value}")


@lru_cache(maxsize=4096)
def _variant_text(variant: Variant) -> str:
    parts = [variant.name]
    for field in dataclasses.fields(variant):
        value = getattr(variant, field.name)
        if value != field.default:
            parts.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}")
    return ":".join(parts)


def _field(low: float = 1, high: float = math.inf, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"range": (low, high)})


# ---------------------------------------------------------------- masks


@dataclass(frozen=True, kw_only=True)
class Mask(Variant):
    """Which keys each query may attend to."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that an implementation must list in order to support this mask."""
        return (self.name,)

    @property
    def by_index(self) -> bool:
        """Whether the mask is a formula of the two indices, so that `allowed` works."""
        return False

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        """True where query i may attend to key j.

        `i` [Sq, 1] and `j` [1, Sk] are integer arrays of numpy or torch; the result is boolean [Sq, Sk].
        Raises `ProblemError` where the mask is no formula of the indices.
        """
        raise ProblemError(f"the {self.name} mask is not a formula of the two indices")


@dataclass(frozen=True, kw_only=True)
class IndexMask(Mask):
    """A mask that is a formula of the two indices."""

    @property
    def by_index(self) -> bool:
        return True

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        return (i >= 0) & (j >= 0) & self._rule(i, j, i + (sk - sq))

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return True


@dataclass(frozen=True, kw_only=True)
class Full(IndexMask):
    """Every query sees every key."""

    name = "full"


@dataclass(frozen=True, kw_only=True)
class Causal(IndexMask):
    """j <= p: the last query sees every key (flash-attention's alignment, bottom right)."""

    name = "causal"

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j <= p


@dataclass(frozen=True, kw_only=True)
class CausalTopLeft(IndexMask):
    """j <= i: the first query sees only the first key (the alignment of torch's `is_causal`)."""

    name = "causal-top-left"

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j <= i


@dataclass(frozen=True, kw_only=True)
class Window(IndexMask):
    """p - left <= j <= p + right; a side left out has no bound."""

    name = "window"
    left: int | None = _field(0, default=None)
    right: int | None = _field(0, default=None)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        rule = True if self.left is None else j >= p - self.left
        return rule if self.right is None else rule & (j <= p + self.right)


@dataclass(frozen=True, kw_only=True)
class Chunked(IndexMask):
    """Queries see the keys of their own chunk of `size` positions (Llama 4, times `causal`)."""

    name = "chunked"
    size: int = _field()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j // self.size == p // self.size


@dataclass(frozen=True, kw_only=True)
class Dilated(IndexMask):
    """Queries see every `step`-th key, counted from their own position."""

    name = "dilated"
    step: int = _field()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return (p - j) % self.step == 0


@dataclass(frozen=True, kw_only=True)
class PrefixLM(IndexMask):
    """The first `prefix` keys are seen by all, the rest is causal (Raffel et al. 2020, figure 4)."""

    name = "prefix-lm"
    prefix: int = _field(0)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return (j < self.prefix) | (j <= p)


@dataclass(frozen=True, kw_only=True)
class BlockCausal(IndexMask):
    """Causal between blocks of `size` positions, full within one."""

    name = "block-causal"
    size: int = _field()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j // self.size <= p // self.size


@dataclass(frozen=True, kw_only=True)
class GlobalWindow(IndexMask):
    """`tokens` global positions see and are seen by all; the others see a window (Longformer, 2020)."""

    name = "global-window"
    tokens: int = _field(0)
    left: int = _field(0)
    right: int = _field(0)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        near = (j >= p - self.left) & (j <= p + self.right)
        return (j < self.tokens) | (p < self.tokens) | near


@dataclass(frozen=True, kw_only=True)
class Document(Mask):
    """Each row of the batch holds `count` documents with seeded lengths that see only themselves."""

    name = "document"
    count: int = _field()
    seed: int = _field(0, default=0)


@dataclass(frozen=True, kw_only=True)
class Tree(Mask):
    """The last queries form a tree of `width` children down to `depth`; each sees its ancestors."""

    name = "tree"
    width: int = _field()
    depth: int = _field()


@dataclass(frozen=True, kw_only=True)
class BlockSparse(Mask):
    """A seeded choice of `block` x `block` tiles, the share `density` of them."""

    name = "block-sparse"
    density: float = _field(0, 1)
    block: int = _field(default=128)
    seed: int = _field(0, default=0)


@dataclass(frozen=True, kw_only=True)
class KeyPadding(Mask):
    """Rows of the batch whose last keys are padding, with seeded lengths; `share` is the padded part."""

    name = "key-padding"
    share: float = _field(0, 1)
    seed: int = _field(0, default=0)


@dataclass(frozen=True, kw_only=True)
class LeftPadding(Mask):
    """As key-padding, but the first keys are the padding."""

    name = "left-padding"
    share: float = _field(0, 1)
    seed: int = _field(0, default=0)


@dataclass(frozen=True)
class Product(Mask):
    """Allowed where every factor allows: `document:count=4*causal`. Kept in the order of the text."""

    name = "product"
    factors: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise ProblemError("a product of masks needs at least two factors")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for factor in self.factors for name in factor.names))

    @property
    def by_index(self) -> bool:
        return all(factor.by_index for factor in self.factors)

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        return reduce(operator.and_, (factor.allowed(i, j, sq, sk) for factor in self.factors))

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


# ---------------------------------------------------------------- modifiers, mechanisms, layouts


@dataclass(frozen=True, kw_only=True)
class Modifier(Variant):
    """A change of the scores between q k^T and the softmax."""


@dataclass(frozen=True, kw_only=True)
class Softcap(Modifier):
    """s <- cap * tanh(s / cap), after the scale and before the mask (Gemma 2, 2024, section 2)."""

    name = "softcap"
    cap: float = _field(1e-6)


@dataclass(frozen=True, kw_only=True)
class Alibi(Modifier):
    """s <- s - m_h |p - j|, m_h a power of two per head (Press et al. 2022)."""

    name = "alibi"


@dataclass(frozen=True, kw_only=True)
class Bias(Modifier):
    """s <- s + bias, a tensor [Hq, Sq, Sk]; `heads=1` is one plane for all heads; `grad=1` wants its gradient."""

    name = "bias"
    heads: int | None = _field(1, 1, default=None)
    grad: int = _field(0, 1, default=0)


@dataclass(frozen=True, kw_only=True)
class RelativeBias(Modifier):
    """s <- s + a learned number per head and bucketed distance (T5: Raffel et al. 2020, section 2.1)."""

    name = "relative-bias"
    buckets: int = _field(default=32)
    distance: int = _field(default=128)


@dataclass(frozen=True, kw_only=True)
class Sinks(Modifier):
    """A learned logit per head joins the softmax's denominator and brings no value (gpt-oss, 2025)."""

    name = "sinks"


@dataclass(frozen=True, kw_only=True)
class Rotary(Modifier):
    """q and k are rotated inside the timed call (Su et al. 2021)."""

    name = "rotary"
    base: float = _field(1, default=10000.0)


@dataclass(frozen=True, kw_only=True)
class Mechanism(Variant):
    """How scores come from q and k, and weights from scores."""


@dataclass(frozen=True, kw_only=True)
class Softmax(Mechanism):
    """softmax(scale q k^T) v (Vaswani et al. 2017, equation 1)."""

    name = "softmax"


@dataclass(frozen=True, kw_only=True)
class Dot(Mechanism):
    """softmax(q k^T) v, unscaled (Luong et al. 2015, equation 8, `dot`)."""

    name = "dot"


@dataclass(frozen=True, kw_only=True)
class General(Mechanism):
    """softmax(q W k^T) v (Luong et al. 2015, equation 8, `general`)."""

    name = "general"


@dataclass(frozen=True, kw_only=True)
class Additive(Mechanism):
    """softmax(w . tanh(Wq q + Wk k)) v, hidden size `hidden` (Bahdanau et al. 2015, A.1.2)."""

    name = "additive"
    hidden: int | None = _field(default=None)


@dataclass(frozen=True, kw_only=True)
class Location(Mechanism):
    """Weights from the query alone: softmax(W q) v (Luong et al. 2015, equation 8, `location`)."""

    name = "location"


@dataclass(frozen=True, kw_only=True)
class Linear(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k), phi = elu + 1 (Katharopoulos et al. 2020, equation 7)."""

    name = "linear"


@dataclass(frozen=True, kw_only=True)
class LocalGaussian(Mechanism):
    """Softmax weights times a Gaussian around a predicted position (Luong et al. 2015, equation 10)."""

    name = "local-gaussian"
    window: int = _field()


@dataclass(frozen=True, kw_only=True)
class MultiHead(Mechanism):
    """Softmax attention with its four projections inside the call (Vaswani et al. 2017, 3.2.2)."""

    name = "multi-head"


@dataclass(frozen=True, kw_only=True)
class Sparsemax(Mechanism):
    """The Euclidean projection onto the simplex in place of softmax (Martins and Astudillo 2016)."""

    name = "sparsemax"


@dataclass(frozen=True, kw_only=True)
class Entmax(Mechanism):
    """alpha-entmax in place of softmax (Peters et al. 2019)."""

    name = "entmax"
    alpha: float = _field(1, 2, default=1.5)


@dataclass(frozen=True, kw_only=True)
class Layout(Variant):
    """How the tokens of a batch lie in memory."""


@dataclass(frozen=True, kw_only=True)
class Dense(Layout):
    """[B, S, H, D] or a permutation of it, padded to the longest where the batch is ragged."""

    name = "dense"


@dataclass(frozen=True, kw_only=True)
class Packed(Layout):
    """[total tokens, H, D] with cumulative lengths."""

    name = "packed"


@dataclass(frozen=True, kw_only=True)
class Paged(Layout):
    """K and V in pages of `page` tokens, found through a shuffled block table (Kwon et al. 2023)."""

    name = "paged"
    page: int = _field(default=16)


def _leaves(kind: type[Variant]) -> dict[str, type[Variant]]:
    found: dict[str, type[Variant]] = {}
    for sub in kind.__subclasses__():
        found |= {sub.name: sub} if "name" in vars(sub) else _leaves(sub)
    return found


MASKS = {name: kind for name, kind in _leaves(Mask).items() if kind is not Product}
MODIFIERS = _leaves(Modifier)
MECHANISMS = _leaves(Mechanism)
LAYOUTS = _leaves(Layout)


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(names)}"


def _parse_variant(text: str, known: Mapping[str, type[Variant]], what: str) -> Variant:
    name, *parts = text.strip().split(":")
    if name not in known:
        raise ProblemError(f"unknown {what} `{name}`", hint=suggestion(name, known))
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    values: dict[str, Any] = {}
    for place, part in enumerate(parts):
        key, equals, number = part.rpartition("=")
        if not equals:  # `window:1023:0` gives the fields in their order
            key = list(fields)[place] if place < len(fields) else part
        if key not in fields:
            raise ProblemError(f"{what} `{name}` has no `{key}`", hint=suggestion(key, fields))
        if key in values:
            raise ProblemError(f"{what} `{name}` is given `{key}` twice")
        try:
            values[key] = float(number) if fields[key].type is float else int(number)
        except ValueError:
            raise ProblemError(f"{key} of {name} must be a number, got {number!r}") from None
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ProblemError(f"{what} `{name}` needs `{missing[0]}`", hint=f"write {name}:{missing[0]}=16")
    return known[name](**values)


@lru_cache(maxsize=4096)
def parse_mask(text: str) -> Mask:
    """`causal`, `window:left=1023:right=0`, `document:count=4*causal` -> a mask. Raises `ProblemError`."""
    factors = tuple(cast(Mask, _parse_variant(part, MASKS, "mask")) for part in text.split("*"))
    return factors[0] if len(factors) == 1 else Product(factors)


@lru_cache(maxsize=4096)
def parse_modifiers(text: str) -> tuple[Modifier, ...]:
    """`softcap:cap=50+sinks` or `none` -> modifiers in the order of their names."""
    if text == "none":
        return ()
    found = [cast(Modifier, _parse_variant(part, MODIFIERS, "modifier")) for part in text.split("+")]
    return tuple(sorted(found, key=str))


@lru_cache(maxsize=4096)
def parse_mechanism(text: str) -> Mechanism:
    """`softmax`, `additive:hidden=64` -> a mechanism."""
    return cast(Mechanism, _parse_variant(text, MECHANISMS, "mechanism"))


@lru_cache(maxsize=4096)
def parse_layout(text: str) -> Layout:
    """`dense`, `packed`, `paged:page=16` -> a layout."""
    return cast(Layout, _parse_variant(text, LAYOUTS, "layout"))


# ---------------------------------------------------------------- batches

Sequences = tuple[tuple[int, int], ...]
LARGEST_BATCH = 2**16
_LENGTH = r"(\d+)(k?)"
_REQUEST = re.compile(rf"([1-9]\d*)q{_LENGTH}(?:s{_LENGTH})?")
_SOUND = re.compile(r"[1-9]\d*(?:q(?:\d+k?(?:s(?:\d+k?)?)?)?)?")  # how far a broken one can be read


def parse_requests(text: str) -> Sequences:
    """`2q2k_32q1s1k` -> two sequences (2048, 2048) and 32 of (1, 1024).

    Each part is `<count>q<query tokens>[s<key/value tokens>]`; `k` multiplies by 1024.
    Raises `ProblemError` that points at the first character that does not fit.
    """
    sequences: list[tuple[int, int]] = []
    at = 0
    for part in text.split("_"):
        match = _REQUEST.fullmatch(part)
        if match is None:
            sound = _SOUND.match(part)
            place = at + (sound.end() if sound else 0)
            raise ProblemError(
                f"requests {text!r}: cannot read character {place + 1} ({text[place : place + 1] or 'the end'!r})",
                hint="write <count>q<len>[s<len>] joined by `_`, such as 2q2k_32q1s1k",
            )
        if int(match[1]) > LARGEST_BATCH:
            raise ProblemError(f"a batch has at most {LARGEST_BATCH:,} members, got {int(match[1]):,}")
        q = int(match[2]) * (1024 if match[3] else 1)
        s = int(match[4]) * (1024 if match[5] else 1) if match[4] else q
        sequences += [(q, s)] * int(match[1])
        at += len(part) + 1
    return tuple(sequences)


def requests_text(sequences: Sequences) -> str:
    """The inverse of `parse_requests`, without `k`."""
    runs = ((pair, len(list(same))) for pair, same in groupby(sequences))
    return "_".join(f"{n}q{q}" if q == s else f"{n}q{q}s{s}" for (q, s), n in runs)


# ---------------------------------------------------------------- the problem


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
    mask: Mask = Full()
    modifiers: tuple[Modifier, ...] = ()
    scale: float | None = None
    """Factor of q k^T; None is 1 / sqrt(D)."""
    mechanism: Mechanism = Softmax()
    layout: Layout = Dense()
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
        for name in ("heads_q", "heads_kv", "head_dim", "head_dim_v"):
            if getattr(self, name) < 1:
                raise ProblemError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads_q % self.heads_kv:
            raise ProblemError(
                f"heads_q must be a multiple of heads_kv, got {self.heads_q} and {self.heads_kv}"
            )
        if not 0 <= self.dropout < 1:
            raise ProblemError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale):
            raise ProblemError(f"scale must be a finite number other than 0, got {self.scale}")
        if self.shared_kv and self.head_dim_v > self.head_dim:
            raise ProblemError(
                f"shared k and v need head_dim_v <= head_dim, got {self.head_dim_v} > {self.head_dim}"
            )
        if isinstance(self.mask, CausalTopLeft) and all(q == s for q, s in self.sequences):
            object.__setattr__(self, "mask", Causal())  # the same problem, so the same row
        if self.scale is not None and math.isclose(self.scale, self.head_dim**-0.5, rel_tol=1e-12):
            object.__setattr__(self, "scale", None)

    @property
    def batch(self) -> int:
        return len(self.sequences)

    @cached_property
    def uniform(self) -> tuple[int, int] | None:
        """(Sq, Sk) where all members of the batch have the same, else None."""
        first = self.sequences[0]
        return first if self.sequences.count(first) == len(self.sequences) else None

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

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


def parse_words(text: str) -> dict[str, str]:
    """`batch=1 seqlen=512 ...` -> a value per key. Raises `ProblemError` for a word that is no pair."""
    values: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ProblemError(f"cannot read {word!r} in a problem", hint="write words such as seqlen=512")
        if key in values:
            raise ProblemError(f"`{key}` is given twice in a problem")
        values[key] = value
    return values


PROBLEM_KEYS: dict[str, tuple[type, str, str]] = {
    "batch": (int, "1", "B, members of the batch"),
    "seqlen": (int, "", "Sq = Sk, tokens; sets both lengths"),
    "seqlen_q": (int, "", "Sq, query tokens"),
    "seqlen_kv": (int, "", "Sk, key/value tokens"),
    "requests": (str, "", "a batch in words: `2q2k_32q1s1k`, in place of batch and lengths"),
    "heads": (int, "", "Hq = Hk; sets both head counts"),
    "heads_q": (int, "", "Hq, query heads"),
    "heads_kv": (int, "heads_q", "Hk, key/value heads; divides heads_q"),
    "head_dim": (int, "", "D, head dimension of q and k"),
    "head_dim_v": (int, "head_dim", "Dv, head dimension of v and the output"),
    "dtype": (str, "float32", f"one of {', '.join(DType)}"),
    "kv_dtype": (str, "dtype", "element type of k and v"),
    "mask": (str, "full", f"one of {', '.join(MASKS)}; a product is written with `*`"),
    "modifiers": (str, "none", f"of {', '.join(MODIFIERS)}; joined by `+`"),
    "scale": (float, "1/sqrt(head_dim)", "factor of q k^T"),
    "mechanism": (str, "softmax", f"one of {', '.join(MECHANISMS)}"),
    "layout": (str, "dense", f"one of {', '.join(LAYOUTS)}"),
    "direction": (str, "forward", f"one of {', '.join(Direction)}"),
    "dropout": (float, "0", "probability that a weight is dropped"),
    "shared_kv": (bool, "false", "v is the first head_dim_v columns of k, stored once"),
}
"""The keys of a problem: type, default as text, meaning. Loader, schema and docs are made from it."""


def _convert(key: str, value: Any) -> Any:
    kind = PROBLEM_KEYS[key][0]
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        if value not in ("true", "false"):
            raise ProblemError(f"{key} must be true or false, got {value!r}")
        return value == "true"
    try:
        return kind(value)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ProblemError(f"{key} must be {noun}, got {value!r}") from None


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
        left[key] = _convert(key, value)

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
        batch = take("batch", 1)
        if not 1 <= batch <= LARGEST_BATCH:
            raise ProblemError(f"batch must be from 1 to {LARGEST_BATCH:,}, got {batch:,}")
        lengths = pair("seqlen", "seqlen_q", "seqlen_kv", False)
        for name, length in zip(("seqlen_q", "seqlen_kv"), lengths, strict=True):
            if length < 1:
                raise ProblemError(f"{name} must be at least 1, got {length}")
        sequences = (lengths,) * batch
    heads_q, heads_kv = pair("heads", "heads_q", "heads_kv", True)
    head_dim = take("head_dim")
    dtype = _member(DType, take("dtype", "float32"), "dtype")
    return Problem(
        sequences=sequences,
        heads_q=heads_q,
        heads_kv=heads_kv,
        head_dim=head_dim,
        head_dim_v=take("head_dim_v", head_dim),
        dtype=dtype,
        kv_dtype=_member(DType, take("kv_dtype", dtype), "dtype"),
        mask=parse_mask(take("mask", "full")),
        modifiers=parse_modifiers(take("modifiers", "none")),
        scale=take("scale", None),
        mechanism=parse_mechanism(take("mechanism", "softmax")),
        layout=parse_layout(take("layout", "dense")),
        direction=_member(Direction, take("direction", "forward"), "direction"),
        dropout=take("dropout", 0.0),
        shared_kv=take("shared_kv", False),
    )
