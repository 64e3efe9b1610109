import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROBLEM = "seqlen=65536 heads=1 head_dim=64 dtype=bfloat16 mask=causal"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_at_64k_tokens_what_needs_linear_memory_is_measured_and_the_plain_chain_is_out_of_memory(
    tmp_path: Path,
) -> None:
    """The mask of one head is 4 GiB, its scores 8, and the limit is 6."""
    settings = ("measure.preset=quick", "measure.memory=6GiB", "measure.timeout=10m")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "attnbench", "run", "-q", "-o", str(tmp_path / "run")),
            *("--problem", PROBLEM, "--only", "torch-chunked,torch-sdpa-flash,torch-naive"),
            *(word for setting in settings for word in ("--set", setting)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run" / "results.csv", newline="") as file:
        rows = {row["implementation"]: row for row in csv.DictReader(file)}
    for name in ("torch-chunked", "torch-sdpa-flash"):
        row = rows[name]
        print(f"{name}: {row['median_s']} s, {row['workspace_bytes']} bytes of workspace")
        assert (row["status"], row["reason"]) == ("ok", "")
        assert 0 < float(row["checked_share"]) < 1
        assert float(row["workspace_bytes"]) < 2**30
    print(f"torch-naive: {rows['torch-naive']['status']}: {rows['torch-naive']['reason']}")
    assert rows["torch-naive"]["status"] == "out of memory"
    assert re.search(r"allocate \d{10,} bytes", rows["torch-naive"]["reason"])
    assert "(limit 6.00 GiB)" in rows["torch-naive"]["reason"]
