"""How Python calls the kernels that inductor compiles for the CPU: without the interpreter's lock.

torch's own operators let go of it while they compute. Kernels that inductor generates do not: one that takes 15 ms
stops all other threads for so long, those that answer other models' requests among them, and instances on threads of
their own would run one after the other.
"""

import logging

from torch._inductor.codecache import CppPythonBindingsCodeCache

log = logging.getLogger(__name__)

# Changes whenever the source that is compiled does: cached kernels are found by it.
VERSION = "1"
_BEFORE = "kernel({}); Py_RETURN_NONE;"
_AFTER = "call_without_lock(kernel, {}); Py_RETURN_NONE;"
# Arguments are taken out of Python's objects before the call, so with the lock; and what a kernel throws passes the
# destructor, so is turned into a Python exception with the lock. Braces are doubled: torch puts it through str.format.
_CALL = """
template <typename Function, typename... Arguments>
static inline void call_without_lock(Function function, Arguments... arguments) {{
    struct Unlocked {{
        PyThreadState* state = PyEval_SaveThread();
        ~Unlocked() {{ PyEval_RestoreThread(state); }}
    }} unlocked;
    function(arguments...);
}}
"""


def release_lock_in_kernels() -> None:
    """Have kernels that are compiled from now on run without the interpreter's lock. Idempotent."""
    bindings = CppPythonBindingsCodeCache
    if bindings.call_entry_function == _BEFORE and bindings.extra_parse_arg in ("", _CALL):
        # In this order: another thread that finds the second one done may compile at once.
        bindings.extra_parse_arg = _CALL
        bindings.call_entry_function = _AFTER
    elif bindings.call_entry_function != _AFTER:
        log.warning("this torch binds kernels in another way than is known: they will hold the interpreter's lock")
