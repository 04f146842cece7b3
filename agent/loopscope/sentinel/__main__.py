"""``python -m loopscope.sentinel N``: what a worker starts (``sentinel.keeper``), with a lock."""

import os
import sys

if __name__ == "__main__":
    # First, for the worker waits for its child; what the rest imports takes a while.
    if os.fork():
        os._exit(0)

    from loopscope.sentinel.process import main

    sys.exit(main(sys.argv[1:], os.environ))
