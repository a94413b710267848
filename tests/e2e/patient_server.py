"""``preheat``, but one that waits for ever until nothing is under way when it stops. Runs in a process of its own.

So whatever is left behind by a call that ended, on whichever way, keeps the process from ending, and needs no clock to
be noticed.
"""

import sys

import preheat.app
from preheat.cli import main

if __name__ == "__main__":
    preheat.app._FLUSH_SECONDS = 86_400.0
    sys.exit(main())
