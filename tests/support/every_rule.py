"""Options with which each rule reuses something in an image of nine steps, by how many copies it
makes a step within a named request. The first steps compute in a row, four at least, so that each
predictor can fit."""

NUM_STEPS = 9
SCHEDULES = {
    "even": {"every": 2},
    "spread": {"compute_share": 0.5},
    "fixed": {"compute_mask": [1, 1, 1, 1, 1, 0, 0, 1, 0]},
    "magcache": {"mag_ratios": [1.0] * NUM_STEPS, "retention_ratio": 0.5},
    "dbcache": {
        "steps_computation_mask": [1, 1, 1, 1, 1, 0, 0, 1, 0],
        "steps_computation_policy": "static",
    },
}
ONE_REGION = {
    "dbcache": {"max_warmup_steps": 5, "residual_diff_threshold": 0.9},
    "easycache": {"easycache_threshold": 9.0},
    "teacache": {"teacache_coefficients": [1.0, 0.0], "teacache_threshold": 9.0},
    "seacache": {"seacache_threshold": 9.0, "seacache_grid": [3, 3], "max_warmup_steps": 5},
    "error_control": {"error_tolerance": 5.0},
}
PRUNED = {"dbprune": {"max_warmup_steps": 5, "residual_diff_threshold": 0.9}}
