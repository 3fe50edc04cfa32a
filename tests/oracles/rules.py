"""When the rules of the field compute, written from their sources: arrays in, decisions out.

Arrays are [step, sample, ...]; samples decide together by the one that moved most, or by the whole
batch at once with `mean`. A decision is True where the step is reused. No code of the package.
"""

import numpy as np

TINY = 1e-16


def relative_l1(new: np.ndarray, old: np.ndarray, mean: bool) -> float:
    """mean|new - old| / mean|old|."""
    pairs = [(new, old)] if mean else list(zip(new, old, strict=True))
    return max(float(np.abs(n - o).mean() / np.abs(o).mean()) for n, o in pairs)


def is_last(step: int, num_steps: int | None) -> bool:
    return num_steps is not None and step == num_steps - 1


def teacache(signals, threshold, coefficients=(1.0, 0.0), warmup=1, num_steps=None, mean=False):
    """arXiv 2411.19108, as in the authors' code: signals are the modulated inputs."""
    rescale, total, hits = np.poly1d(coefficients), 0.0, []
    for step, signal in enumerate(signals):
        if step == 0 or step < warmup or is_last(step, num_steps):
            hits.append(False)
            total = 0.0
            continue
        total += rescale(relative_l1(signal, signals[step - 1], mean))
        hits.append(bool(total < threshold))
        total = total if hits[-1] else 0.0
    return hits


def sea_filter(signal: np.ndarray, noise: float, power: float | None = None) -> np.ndarray:
    """arXiv 2602.18993: the Wiener filter over all axes of [sample, *grid, channel]."""
    grid = signal.shape[1:-1]
    power = len(grid) if power is None else power
    b = min(max(noise, 1e-6), 1 - 1e-6)
    a = 1 - b
    gain = np.ones(grid)
    for axis, size in enumerate(grid):
        spectrum = 1 / (np.abs(np.fft.fftfreq(size)) ** power + TINY)
        one = a * spectrum / (a * a * spectrum + b * b + TINY)
        gain = gain * one.reshape([-1 if i == axis else 1 for i in range(len(grid))])
    axes = tuple(range(1, signal.ndim - 1))
    frequencies = np.fft.fftn(signal, axes=axes) * (gain / gain.mean())[None, ..., None]
    return np.fft.ifftn(frequencies, axes=axes).real


def seacache(signals, noises, threshold, power=None, warmup=1, num_steps=None, mean=False):
    """The rule of TeaCache on filtered signals [step, sample, *grid, channel]."""
    filtered = [sea_filter(s, n, power) for s, n in zip(signals, noises, strict=True)]
    return teacache(filtered, threshold, (1.0, 0.0), warmup, num_steps, mean)


def easycache(inputs, outputs, threshold, warmup=5, num_steps=None, mean=False):
    """arXiv 2507.02860, as it is described: `outputs` are those of a computed step."""
    rows = [slice(None)] if mean else [slice(i, i + 1) for i in range(len(inputs[0]))]
    total, rates, last, hits = 0.0, None, None, []
    for step, x in enumerate(inputs):
        hit = False
        if step < warmup or is_last(step, num_steps):
            total = 0.0
        elif rates is not None:
            changes = [
                rate * np.abs(x[row] - inputs[step - 1][row]).mean() / np.abs(last[1][row]).mean()
                for row, rate in zip(rows, rates, strict=True)
            ]
            total += max(changes)
            hit = bool(total < threshold)
            total = total if hit else 0.0
        if not hit:
            if last is not None:
                rates = [
                    np.abs(outputs[step][row] - last[1][row]).mean()
                    / np.abs(x[row] - last[0][row]).mean()
                    for row in rows
                ]
            last = (x, outputs[step])
        hits.append(hit)
    return hits


def magcache(ratios, num_calls, threshold, max_skip, retention, num_steps=None):
    """arXiv 2506.09045, as in the authors' code for FLUX."""
    wanted = num_steps or len(ratios)
    scale = (len(ratios) - 1) / (wanted - 1) if wanted > 1 else 0
    places = np.round(np.arange(wanted) * scale).astype(int) if wanted > 1 else [len(ratios) - 1]
    table = np.asarray(ratios)[places]
    product, count, error, hits = 1.0, 0, 0.0, []
    for step in range(num_calls):
        hit = False
        if int(retention * wanted + 0.5) <= step < wanted and step > 0:
            product *= table[step]
            count += 1
            error += abs(1 - product)
            hit = bool(error <= threshold and count <= max_skip)
            if not hit:
                product, count, error = 1.0, 0, 0.0
        hits.append(hit)
    return hits
