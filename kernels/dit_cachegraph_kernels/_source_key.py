"""What tells compiled graphs of this version of the ops from those of another."""

import hashlib
from pathlib import Path


def source_key() -> str:
    """A digest of the package's sources.

    PyTorch files a compiled graph under the names of its ops, and not under what they did when it
    was compiled: after an upgrade it would go on with the old bodies. Compile with this as (part
    of) `torch.compiler.config.cache_key_tag`.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return f"dit_cachegraph_kernels-{digest.hexdigest()[:16]}"
