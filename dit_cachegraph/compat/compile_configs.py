"""`set_compile_configs`: torch's settings for the compilation, as far as they help here."""

import torch

from dit_cachegraph.config import unknown_option
from dit_cachegraph.exc import InvalidConfig

RECOMPILE_LIMIT, ACCUMULATED_LIMIT = 1024, 8192
# What cache-dit sets beside the limits and the tuning: torch's own defaults are kept.
NOT_NEEDED = (
    "cuda_graphs",
    "force_disable_compile_caches",
    "fx_graph_cache",
    "fx_graph_remote_cache",
    "autotune_local_cache",
    "use_fast_math",
    "compute_comm_overlap",
    "ulysses_anything",
    "capture_scalar_outputs",
    "capture_dynamic_output_shape_ops",
    "cutedsl_enable_autotuning",
)


def set_compile_configs(descent_tuning: bool = True, **options: object) -> None:
    """Let Dynamo compile as many shapes as a server sees, and Inductor tune its kernels.

    This changes torch's settings for the whole process, as calling it asks for. cache-dit also
    switches the fusion of epilogues off; that stays on, since it makes a computed step slower. Its
    further options are taken at `False` or None alone, `fx_graph_cache`, which torch has on by
    itself, at True or None, and `compute_comm_overlap` at either.

    Raises:
        InvalidConfig: an option that isn't known, or is asked for and not done here.
    """
    for name, value in options.items():
        if name not in NOT_NEEDED:
            raise unknown_option(name, ("descent_tuning", *NOT_NEEDED))
        if name == "fx_graph_cache" and value is not None and not value:
            raise InvalidConfig(
                "fx_graph_cache=False is not set here: set "
                "torch._inductor.config.fx_graph_cache, or TORCHINDUCTOR_FX_GRAPH_CACHE=0"
            )
        if value and name not in ("fx_graph_cache", "compute_comm_overlap"):
            raise InvalidConfig(
                f"{name} is not set here: set torch's own option of the compilation instead"
            )
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = ACCUMULATED_LIMIT
    if descent_tuning:
        # Importing Inductor takes seconds.
        from torch._inductor import config  # noqa: PLC0415

        config.coordinate_descent_tuning = True
