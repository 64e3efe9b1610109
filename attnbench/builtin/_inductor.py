"""Inductor as a process finds it that has compiled before: named in `preload`, so that it is found out once a run.

What takes seconds at a first compilation, though all of it be in Inductor's caches: the imports, the key of torch's
own sources, and the CPU's vector instructions, for which it starts a program each time.
"""

import torch._dynamo.backends.inductor
import torch._inductor.compile_fx
import torch.export._trace
import torch.nn.attention.flex_attention
import torch.utils.cpp_extension  # noqa: F401
from torch._inductor import codecache, cpu_vec_isa

codecache.torch_key()
cpu_vec_isa.pick_vec_isa()
