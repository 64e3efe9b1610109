"""What one timed call computes."""

from enum import StrEnum


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
