"""The native transport's library by itself, which takes calls and answers none. Runs in a process of its own, to end.

Its address space is limited, so that what cannot be had is refused at once, on every machine. It says on which port it
listens, and ends when its standard input does.
"""

import resource
import sys

from pygrpc_native import NativeGrpcFront

ADDRESS_SPACE_BYTES = 8 * 2**30

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    # It is meant to be aborted, and nobody wants to see what was in it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    front = NativeGrpcFront("127.0.0.1:0", [(sys.argv[1], False)], call_details=True)
    front.start()
    print(front.bound_port, flush=True)  # noqa: T201 - to who started it
    sys.stdin.read()
    front.close()
