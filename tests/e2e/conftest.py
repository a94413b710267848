"""What holds for every server that the tests of this folder start."""

import os

# That the compiler can build for this CPU is taken for granted: to try it out takes each new process ten seconds, and
# is left to tests/backends/test_torch_compile_cache.py. Not in server_process.py: benchmarks start its servers as well.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
