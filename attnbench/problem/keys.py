"""The keys in which people write a problem."""

from typing import Any

from attnbench.errors import ProblemError
from attnbench.problem.batches import PATTERNS
from attnbench.problem.directions import Direction
from attnbench.problem.dtypes import Descale, DType
from attnbench.problem.layouts import LAYOUTS
from attnbench.problem.masks import MASKS
from attnbench.problem.mechanisms import MECHANISMS
from attnbench.problem.modifiers import MODIFIERS
from attnbench.problem.variants import read_number


def parse_words(text: str) -> dict[str, str]:
    """`batch=1 seqlen=512 ...` -> a value per key. Raises `ProblemError` for a word that is no pair."""
    values: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ProblemError(
                f"cannot read {word!r} in a problem",
                hint="write words without spaces, such as seqlen=512 or mask=window:left=10:right=0",
            )
        if key in values:
            raise ProblemError(f"`{key}` is given twice in a problem")
        values[key] = value
    return values


PROBLEM_KEYS: dict[str, tuple[type, str, str]] = {
    "batch": (int, "1", "B, members of the batch"),
    "seqlen": (int, "", "Sq = Sk, tokens; sets both lengths"),
    "seqlen_q": (int, "", "Sq, query tokens"),
    "seqlen_kv": (int, "", "Sk, key/value tokens"),
    "requests": (
        str,
        "",
        "a batch in words, `2q2k_32q1s1k`, or a pattern of lengths, one of "
        f"{', '.join(PATTERNS)}; in place of batch and lengths",
    ),
    "heads": (int, "", "Hq = Hk; sets both head counts"),
    "heads_q": (int, "", "Hq, query heads"),
    "heads_kv": (int, "heads_q", "Hk, key/value heads; divides heads_q"),
    "head_dim": (int, "", "D, head dimension of q and k"),
    "head_dim_v": (int, "head_dim", "Dv, head dimension of v and the output"),
    "dtype": (str, "float32", f"one of {', '.join(DType)}"),
    "kv_dtype": (str, "dtype", "element type of k and v"),
    "descale": (
        str,
        "tensor",
        f"what has a factor of its own where q, k or v are float8_e4m3 or int8, one of {', '.join(Descale)}",
    ),
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


def convert(key: str, value: Any) -> Any:
    """A text -> the value of the key's type; values that are none stay. Raises `ProblemError`."""
    kind = PROBLEM_KEYS[key][0]
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        if value not in ("true", "false"):
            raise ProblemError(f"{key} must be true or false, got {value!r}")
        return value == "true"
    return read_number(kind, value, key)
