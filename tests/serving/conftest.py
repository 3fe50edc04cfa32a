"""What all of this needs beside torch is optional."""

import importlib.util

needed = ("fastapi", "uvicorn", "prometheus_client")
if not all(map(importlib.util.find_spec, needed)):
    collect_ignore_glob = ["test_*.py"]
