"""Environment of every test, set before torch and Ray are imported: one thread, and a local Ray without authentication."""

import atexit
import os
import shutil
import tempfile

_CACHE = tempfile.mkdtemp(prefix="raydd-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    RAYDD_CACHE=_CACHE,
    RAY_AUTH_MODE="disabled",
    RAY_DEDUP_LOGS="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    OMP_NUM_THREADS="1",
    RAYDD_THREADS="1",
)
