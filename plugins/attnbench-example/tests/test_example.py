from attnbench_example import attnbench_implementations

from attnbench.testing import check_implementation


def test_it_computes_attention():
    (implementation,) = attnbench_implementations()
    check_implementation(implementation)  # every dtype, mask and direction of its capabilities
