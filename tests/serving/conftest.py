"""What all of this needs beside torch is optional."""

import importlib.util

from support.sharing import fresh_dynamo as fresh_dynamo

needed = ("fastapi", "uvicorn", "prometheus_client")
if not all(map(importlib.util.find_spec, needed)):
    collect_ignore_glob = ["test_*.py"]
