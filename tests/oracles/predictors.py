"""What each predictor forecasts, written from its source in numpy and float64, to compare with.

Nothing here knows weights: each function takes the values themselves, [n, ...], with the steps that
they are from, and says what they are at `step`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.polynomial import chebyshev, hermite

Values = np.ndarray
Oracle = Callable[..., Values]


def replay(values: Values, steps: Sequence[int], step: int) -> Values:
    return values[-1]


def taylorseer(
    values: Values, steps: Sequence[int], step: int, taylorseer_order: int = 1
) -> Values:
    """F + sum of (i-th derivative / i!) k^i. Values of the first two steps make a line at most."""
    num_later = len([s for s in steps if s >= 2])
    order = min(taylorseer_order, len(steps) - 1, max(1, num_later - 1))
    forecast = values[-1]
    for i in range(1, order + 1):
        leading = _polynomial(values[-i - 1 :], steps[-i - 1 :])[0]
        forecast = forecast + leading * (step - steps[-1]) ** i
    return forecast


def foca(values: Values, steps: Sequence[int], step: int) -> Values:
    """A step of Heun: the mean of the slope between the last values and of BDF2's, which is that of
    the parabola through three at its end."""
    if len(steps) < 3:
        return taylorseer(values, steps, step)
    slope = (values[-1] - values[-2]) / (steps[-1] - steps[-2])
    square, linear, _ = _polynomial(values[-3:], steps[-3:])
    bdf2 = 2 * square * steps[-1] + linear
    return values[-1] + (step - steps[-1]) / 2 * (slope + bdf2)


def hicache(
    values: Values,
    steps: Sequence[int],
    step: int,
    hicache_order: int = 2,
    hicache_sigma: float = 0.5,
) -> Values:
    """F + sum of (i-th derivative / i!) sigma^i H_i(sigma k)."""
    forecast = values[-1]
    x = hicache_sigma * (step - steps[-1])
    for i in range(1, min(hicache_order, len(steps) - 1) + 1):
        leading = _polynomial(values[-i - 1 :], steps[-i - 1 :])[0]
        derivative = math.factorial(i) * leading
        h_i = hermite.hermval(x, [0.0] * i + [1.0])
        forecast = forecast + derivative / math.factorial(i) * hicache_sigma**i * h_i
    return forecast


def damped_line(
    values: Values, steps: Sequence[int], step: int, damped_line_least: float = 0.25
) -> Values:
    """Between the line through the last two values and a share of it, as far as the least-squares
    fit of what the line before promised to what came, of each sample."""
    if len(steps) == 1:
        return values[-1]
    moved = taylorseer(values[-2:], steps[-2:], step) - values[-1]
    fits = np.zeros(len(values[-1]))
    if len(steps) > 2:
        first, middle, last = steps[-3:]
        for i, (a, b, c) in enumerate(zip(*values[-3:], strict=True)):
            promised = (b - a) / (middle - first) * (last - middle)
            (fit,) = np.linalg.lstsq(promised.reshape(-1, 1), (c - b).reshape(-1), rcond=None)[0]
            fits[i] = min(max(fit, 0.0), 1.0)
    shares = fits + (1 - fits) * damped_line_least
    return values[-1] + shares.reshape(-1, *[1] * (moved.ndim - 1)) * moved


def _polynomial(values: Values, steps: Sequence[int]) -> Values:
    """Coefficients of the polynomial through the values, the highest power first."""
    powers = np.vander(np.asarray(steps, float), len(steps))
    flat = np.linalg.solve(powers, values.reshape(len(steps), -1))
    return flat.reshape(values.shape)


def chebyshev_ridge(
    values: Values,
    steps: Sequence[int],
    step: int,
    chebyshev_degree: int = 4,
    chebyshev_ridge: float = 1e-3,
    chebyshev_history: int = 10,
    chebyshev_num_steps: int = 50,
) -> Values:
    """The coefficients, one row of equations a value and one a coefficient that is to be small."""
    values, steps = values[-chebyshev_history:], steps[-chebyshev_history:]
    flat = values.reshape(len(steps), -1)

    def basis(at: Sequence[int]) -> Values:
        return chebyshev.chebvander(
            2 * np.asarray(at, float) / chebyshev_num_steps - 1, chebyshev_degree
        )

    smallness = math.sqrt(chebyshev_ridge) * np.eye(chebyshev_degree + 1)[1:]
    equations = np.vstack([basis(steps), smallness])
    sides = np.vstack([flat, np.zeros((chebyshev_degree, flat.shape[1]))])
    coefficients = np.linalg.lstsq(equations, sides, rcond=None)[0]
    return (basis([step]) @ coefficients)[0].reshape(values.shape[1:])


def dmd(
    values: Values,
    steps: Sequence[int],
    step: int,
    dmd_history: int = 6,
    dmd_rank: int = 0,
    dmd_ridge: float = 1e-8,
    dmd_svd_precision: str = "medium",
) -> Values:
    """Exact DMD (Tu et al. 2014) of each sample, [d, n], to a fractional power; what no mode has of
    the newest value is replayed."""
    values, steps = values[-dmd_history:], list(steps[-dmd_history:])
    gaps = np.diff(steps).tolist()
    num_even = 1
    while num_even <= len(gaps) and gaps[-num_even] == gaps[-1]:
        num_even += 1
    if num_even < 4:
        return taylorseer(values, steps, step)
    tail = values[-num_even:]
    power = (step - steps[-1]) / gaps[-1]
    samples = [
        _dmd_of_sample(tail[:, i].reshape(num_even, -1).T, power, dmd_rank, dmd_ridge)
        for i in range(tail.shape[1])
    ]
    return np.stack(samples).reshape(tail.shape[1:])


def _dmd_of_sample(snapshots: Values, power: float, rank: int, ridge: float) -> Values:
    x, y = snapshots[:, :-1], snapshots[:, 1:]
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    num_modes = int((s > 1e-4 * np.linalg.norm(snapshots)).sum())
    r = min(num_modes, rank) if rank else num_modes
    newest = snapshots[:, -1]
    if r == 0:
        return newest
    inverse = np.diag(1 / (s[:r] + ridge * s[0]))
    small = u[:, :r].T @ y @ vh[:r].T @ inverse
    eigenvalues, w = np.linalg.eig(small.astype(complex))
    modes = y @ vh[:r].T @ inverse @ w
    amplitudes = np.linalg.lstsq(modes, newest.astype(complex), rcond=None)[0]
    unexplained = newest - (modes @ amplitudes).real
    return (modes @ (eigenvalues**power * amplitudes)).real + unexplained


ORACLES: Mapping[str, Oracle] = {
    "replay": replay,
    "taylorseer": taylorseer,
    "foca": foca,
    "hicache": hicache,
    "chebyshev": chebyshev_ridge,
    "dmd": dmd,
    "damped_line": damped_line,
}
STREAM_OPTIONS = ("calibrator_cache_type", "enable_encoder_calibrator")


def forecast_of(name: str, options: Mapping[str, object]) -> Oracle:
    """The oracle of a predictor with these options."""
    own = {n: v for n, v in options.items() if n not in STREAM_OPTIONS}
    return lambda values, steps, step: ORACLES[name](values, steps, step, **own)
