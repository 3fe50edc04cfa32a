"""What the page of `bench.quality.overview` says around its tables."""

INTRODUCTION = """# Quality against work

    python -m bench.quality_settings --quick    # some settings, 4 pictures: minutes
    python -m bench.quality_settings --pictures {num} --out bench/results/quality    # resumes
    python -m bench.quality_overview            # writes this page

How near pictures stay to the uncached ones when less of the transformer runs, on two small models \
([evaluation.md](evaluation.md); what is called flux-scenes here has the weights of busy-scenes, \
which the demo's went on from), sampled as people do. *Work* is the share of block computations \
that ran; figures are PSNR in dB to the uncached pictures of as many steps by the same solver, \
means over {num} pictures of prompts that nothing was chosen on. 3 dB are half the squared error; \
under a guidance of 7 a reader of the drawings loses words below about 32 dB. \
[quality-even.md](quality-even.md) has 159 methods on even levels."""

BEST = """## Best at so much work

Ours / the best of all others (cache-dit, diffusers' caches, fewer steps by the same solver), and \
the difference. "Ours" are presets and settings of `configure`; the last table names all of them. \
Not every setting has every method: the command goes on with those that are missing. Some masks \
and tolerances of ours were tried, on the prompts that things are chosen on, because others led \
with as much work, which flatters ours a little."""

NAMES = """## Which they are

Ours first, with their shares. "W6 every 2 to the last" computes the first six steps and, counted \
back from the last one, every second; "all but every 4th" reuses one step in four: \
`configure(pipe, rule="fixed", compute_mask=[...], predictor="replay")` takes such a mask. "E0.09 \
over noise, order 2" is `rule="error_control", error_tolerance=0.09, paced_over="noise", \
taylorseer_order=2`, a curve where the presets have a line. "spread 0.45" is "draft" with more of \
the work: `preset="draft", compute_share=0.45`. Under a guidance of 7, a mask to the last step \
with a replay or with half a line is what holds at half the work and less: in 20 steps, and on \
even levels, where at two fifths the first five or six steps compute and then every fourth."""

SPREADS = """## The presets

Share: mean / tenth percentile / worst picture, in dB."""

LEADS = """## "{preset}" beside the others

The best other method of no more work, and fewer steps by the same solver, with the difference. \
Where a few pictures could have turned the sign, the preset and those that came nearest were \
measured on all {prompts} prompts that are reported on (`--only`, `--pictures {prompts}`), and \
where the difference was below two of its standard errors even so, on {most} pictures of these \
prompts, each from three noises. The line is of the most that there are."""

CHANGED = """## Why "balanced" is paced over noise

It was error control over steps at a tolerance of 0.1, chosen on even levels. On shifted schedules \
the last steps take most of the noise away, and over steps the longest reuses came there."""

DAMPED = """## Why "draft" spreads its steps and damps its line

Where `num_inference_steps` tells it how many steps there are, as in all other tables, the first \
that it computes are closer together, where guidance bends the path most, and the last is one of \
them, which no later one puts right, as is one shortly before it: a shifted schedule takes most of \
the noise away there. Where nobody tells it, it computes every third, as in the \
three columns beside it.

A guidance of 7 multiplies by six or seven what a pass misses, and over gaps of three steps the \
line through the last two computed ones overshoots. `predictor="damped_line"` goes a tenth along \
it, and of the rest as far as the line before came true: far less under such guidance, nearly all \
of it where a path is smooth, which costs there what the figures say. Beside it are, of every \
third step, such a line of a quarter at the least (`damped_line_least=0.25`), a whole one \
(`predictor="taylorseer"`) and half of one (`predictor="hicache", hicache_order=1`); and "fast", \
whose gaps are as short as the error asks for, with a damped line too. A dash: not measured."""

SETTLED = """## What is settled without a cache

The uncached model against itself, in one step less or more: share, mean, tenth percentile and \
worst. A picture that is another one there isn't settled by so many steps of its solver, and no \
cache that errs by as much holds it."""

BEHIND = """## Where others are ahead

By the means, at each hundredth of the work from 0.3 to 0.8."""

NARROW = """## Where "balanced" is less than 3 dB above cache-dit's best setting or fewer steps

By the means, of no more work."""

HARM = """## Where there is little to gain

    python -m bench.quality_harm --out bench/results/quality

Share and mean PSNR of each preset, and in brackets what fewer steps of no more work have. Few \
steps are without guidance, all others under a guidance of 3.5; the drawings that a picture begins \
with are of other prompts, and the two experts have the same weights in two modules."""
