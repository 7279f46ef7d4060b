"""Settings all tests share."""

import os

# Small models and several processes at once on few cores: more threads in each only wait for one another.
# Before torch is imported anywhere, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
