"""`summary`: as text, as JSON, for every kind of target; and the lines of the log."""

import json
import logging
import re
from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxPipeline
from expecttest import assert_expected_inline
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph.demo.flux_scenes import pipeline_around
from dit_cachegraph.step_log import MAX_STEPS_KEPT, StepLog, StepReport
from support.tiny_models import POOLED_DIM, TEXT_DIM, build_flux
from support.toy_dits import adding_dit, toy_inputs
from support.toy_runs import compile_toy, run, toy_steps

NOT_CALLED = "not called yet: nothing is compiled before the first call"
# The residual of the first block is the sine of the timestep: 1 at 90 degrees, 0.5 at 30.
FAR, NEAR = 90.0, 30.0


def run_steps(compiled: nn.Module, *timesteps: float) -> None:
    """The same latents and the same text at every step."""
    inputs = toy_inputs(FAR)
    for timestep in timesteps:
        run(compiled, {**inputs, "timestep": torch.full((2,), timestep)})


def without_seconds(text: object) -> str:
    return re.sub(r"[\d.]+ s\b", "X s", str(text))


def draw(pipe: FluxPipeline, num_steps: int = 2) -> None:
    pipe(
        prompt_embeds=torch.ones(1, 5, TEXT_DIM),
        pooled_prompt_embeds=torch.ones(1, POOLED_DIM),
        height=32,
        width=32,
        num_inference_steps=num_steps,
        guidance_scale=0.0,
        output_type="latent",
    )


def test_text_of_a_run():
    compiled = compile_toy(adding_dit(1, 2, 3, 4), residual_diff_threshold=0.6)
    run_steps(compiled, FAR, NEAR, 10.0, 5.0, FAR)
    assert_expected_inline(
        without_seconds(dc.summary(compiled)),
        """\
cached
blocks x 4: 4 blocks
  blocks: Pattern_3 (h -> h)
  6 segments, 3 distinct, compiled in X s
  Fn=1, Bn=0: a hit skips 3 blocks
  the blocks are 3% of the model's weights
5 steps: 2 reused, 3 computed, 70% of the block work run; 0.00 MiB held for 1 branches
      #1 step   0 t=90       compute new image
      #1 step   1 t=30       reuse   hit 0.5 (sample 0)
      #1 step   2 t=10       compute diff 0.826 >= 0.6 (sample 0)
      #1 step   3 t=5        reuse   hit 0.498 (sample 0)
      #1 step   0 t=90       compute new image""",
    )


def test_text_of_a_refusal():
    compiled = compile_toy(adding_dit(1))
    with pytest.warns(dc.NotCachedWarning):
        run_steps(compiled, FAR)
    report = dc.summary(compiled)
    assert str(report) == "\n".join(report.refusals) and len(report.refusals) == 1
    assert report.refusals[0].startswith("not cached: ")


def test_text_shows_the_last_sixty_steps():
    compiled = compile_toy(adding_dit(1, 2))
    run_steps(compiled, *(float(t) for t in range(80, 15, -1)))
    lines = str(dc.summary(compiled)).splitlines()
    shown = [line for line in lines if line.startswith("      #1 step ")]
    assert len(shown) == 60
    assert " step   5 t=75 " in shown[0] and " step  64 t=16 " in shown[-1]
    assert lines[-1] == "  (the last 60 of 65 steps; all kept in .steps)"


def test_dict_is_json():
    compiled = compile_toy(adding_dit(1, 2, 3, 4), residual_diff_threshold=0.6)
    run_steps(compiled, FAR, NEAR)
    report = dc.summary(compiled)
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [s["hit"] for s in read["steps"]] == [False, True]
    assert read["steps"][1] == {
        "step": 1,
        "timestep": NEAR,
        "hit": True,
        "reason": "hit 0.5",
        "diff": pytest.approx(0.5),
        "request": "#1",
        "skipped": [[1, 4]],
        "observed_error": None,
        "sample": 0,
    }
    (graph,) = read["graphs"]
    (blocks,) = graph["block_lists"]
    assert blocks == {"name": "blocks", "num_blocks": 4, "pattern": "Pattern_3 (h -> h)"}
    assert (graph["num_blocks"], graph["num_segments"], graph["regions"]) == (4, 6, [[1, 4]])
    assert (read["num_hits"], read["num_computed"], read["num_branches"]) == (1, 1, 1)
    # The probe and a residual, each of 2 x 6 x 8 float32.
    assert read["state_nbytes"] == 2 * (2 * 6 * 8 * 4)


def test_dict_is_json_after_a_nan():
    compiled = compile_toy(adding_dit(1, 2))
    run_steps(compiled, FAR, float("nan"))
    told = json.loads(json.dumps(dc.summary(compiled).to_dict(), allow_nan=False))
    assert told["steps"][-1]["timestep"] is None


def test_log_keeps_a_thousand_steps_and_counts_all():
    log = StepLog()
    for i in range(MAX_STEPS_KEPT + 5):
        log.add(StepReport(i, None, i % 3 == 0, "", None, "a"))
        log.tally.add(is_hit=i % 3 == 0, num_blocks=4, num_skipped=2 * (i % 3 == 0), seconds=0.0)
    assert [s.step for s in log.steps] == list(range(5, 1005))
    assert (log.tally.num_hits, log.tally.num_computed) == (335, 670)
    assert (log.tally.num_blocks, log.tally.num_blocks_run) == (4020, 4020 - 670)


def test_report_goes_on_after_a_thousand_steps():
    compiled = compile_toy(adding_dit(1, 2), residual_diff_threshold=1.0)
    timesteps = [90.0 - i / 20 for i in range(MAX_STEPS_KEPT + 7)]
    run_steps(compiled, *timesteps)
    report = dc.summary(compiled)
    assert (report.num_hits, report.num_computed) == (MAX_STEPS_KEPT + 6, 1)
    assert [s.step for s in report.steps] == list(range(7, MAX_STEPS_KEPT + 7))
    assert f"{MAX_STEPS_KEPT + 7} steps: {MAX_STEPS_KEPT + 6} reused, 1 computed" in str(report)


class TestTargets:
    def check(self, *targets: object) -> None:
        """All of them give the same report of one computed and one reused step."""
        reports = [dc.summary(target) for target in targets]
        assert all(report == reports[0] for report in reports)
        assert [s.hit for s in reports[0].steps] == [False, True]

    def test_before_any_call(self):
        model = adding_dit(1, 2)
        for target in (model, compile_toy(model), model.forward, pipeline_around(build_flux(1, 1))):
            report = dc.summary(target)
            assert str(report).startswith(NOT_CALLED) and not report.is_cached
            assert (report.graphs, report.steps, report.state_nbytes) == ((), (), 0)

    def test_what_compile_returned_and_its_module(self):
        model = adding_dit(1, 2)
        compiled = compile_toy(model, residual_diff_threshold=0.6)
        run_steps(compiled, FAR, NEAR)
        self.check(compiled, model)

    def test_a_compiled_function(self):
        """It finds the model by the name that the function has for it, also before the first
        call."""
        model = adding_dit(1, 2)

        def step(hidden_states, timestep, encoder_hidden_states=None):
            return model(hidden_states, timestep, encoder_hidden_states)

        compiled = compile_toy(step)
        assert str(dc.summary(compiled)).startswith(NOT_CALLED)
        dc.configure(compiled, residual_diff_threshold=0.6)
        run_steps(compiled, FAR, NEAR)
        dc.check(compiled)
        self.check(compiled, model)
        dc.reset(compiled)
        assert dc.summary(compiled).state_nbytes == 0

    def test_a_compiled_forward(self):
        model = adding_dit(1, 2)
        compiled = compile_toy(model.forward, residual_diff_threshold=0.6)
        run_steps(compiled, FAR, NEAR)
        self.check(compiled, model.forward, model)

    @pytest.mark.e2e
    @pytest.mark.parametrize("is_in_place", [True, False])
    def test_a_pipeline(self, is_in_place):
        model = build_flux(2, 3)
        options = {"inner_backend": "eager", "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
        pipe = pipeline_around(model)
        if is_in_place:
            model.compile(backend="cachedit", options=options)
        else:
            pipe.transformer = torch.compile(model, backend="cachedit", options=options)
        draw(pipe)
        self.check(pipe, model, pipe.transformer)
        assert [(b.name, b.num_blocks) for b in dc.summary(pipe).graphs[0].block_lists] == [
            ("transformer_blocks", 2),
            ("single_transformer_blocks", 3),
        ]

    @pytest.mark.parametrize("target", [3, None, "model", object(), len, nn.Linear, {}, []])
    @pytest.mark.parametrize("call", [dc.summary, dc.configure, dc.reset, dc.explain])
    def test_unknown(self, call, target):
        with pytest.raises(dc.UnknownTarget) as raised:
            call(target)
        assert str(raised.value) == (
            "expected a pipeline, a transformer or what torch.compile returned for it, got "
            + type(target).__name__
        )

    def test_a_pipeline_without_a_transformer(self):
        with pytest.raises(dc.UnknownTarget, match="got FluxPipeline"):
            dc.summary(pipeline_around(None))


class Lines(logging.Handler):
    """Collects messages; the logging plugin of pytest is off."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.levelname} {without_seconds(record.getMessage())}")

    @property
    def of_images(self) -> list[str]:
        return [line for line in self.found if line.startswith("INFO image")]


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("dit_cachegraph")
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


class TestLog:
    def test_start_and_end_of_compilation(self, lines):
        compiled = compile_toy(adding_dit(1, 2, 3, 4))
        assert lines.found == []
        run_steps(compiled, FAR, NEAR)
        assert lines.found == ["INFO compiling 3 segments of 4 blocks", "INFO compiled in X s"]

    @pytest.mark.parametrize(
        "options",
        [{"mode": "reduce-overhead"}, {"inductor": {"triton.cudagraphs": True}}],
        ids=["mode", "option"],
    )
    def test_cuda_graphs_that_are_left_out(self, lines, options):
        run_steps(compile_toy(adding_dit(1, 2, 3, 4), **options), FAR)
        (line,) = [found for found in lines.found if "CUDA graphs" in found]
        assert "the cache runs without Inductor's CUDA graphs: they overwrite what it" in line

    def test_settings_that_outlive_a_reset_and_new_options(self, lines):
        """Once, and not where both say the same."""
        told = "INFO settings of `configure` hold over the `options` of `torch.compile`: "
        model = adding_dit(1, 2)
        run_steps(compile_toy(model, residual_diff_threshold=0.5), FAR)
        dc.configure(model, residual_diff_threshold=0.25)
        torch._dynamo.reset()
        assert not [line for line in lines.found if line.startswith(told)]
        run_steps(compile_toy(model, residual_diff_threshold=0.75), FAR, NEAR)
        assert [line for line in lines.found if line.startswith(told)] == [
            f"{told}residual_diff_threshold=0.25 (not 0.75)"
        ]
        torch._dynamo.reset()
        run_steps(compile_toy(model, residual_diff_threshold=0.25), FAR)
        assert len([line for line in lines.found if line.startswith(told)]) == 1

    def test_an_image_is_told_when_the_next_one_begins(self, lines):
        compiled = compile_toy(adding_dit(1, 2, 3, 4), residual_diff_threshold=1.0)
        run_steps(compiled, FAR, NEAR, 10.0)
        assert lines.of_images == []
        run_steps(compiled, FAR)
        # One step of 4 blocks, and two of 1 block: half of 12.
        assert lines.of_images == [
            "INFO image of request #1: 2 of 3 steps reused, 50% of the block work run"
        ]

    def test_an_image_is_told_at_its_last_step_where_that_is_known(self, lines):
        compiled = compile_toy(adding_dit(1, 2), residual_diff_threshold=1.0)
        dc.configure(compiled, num_inference_steps=2)
        with dc.request("mine"):
            run_steps(compiled, FAR, NEAR, FAR)
        assert lines.of_images == [
            "INFO image of request mine: 1 of 2 steps reused, 75% of the block work run"
        ]

    def test_no_hit_tells_the_smallest_diff_and_the_threshold(self, lines):
        compiled = compile_toy(adding_dit(1, 2), residual_diff_threshold=0.4)
        dc.configure(compiled, num_inference_steps=3)
        run_steps(compiled, FAR, NEAR, 10.0)
        assert lines.of_images == [
            "INFO image of request #1: 0 of 3 steps reused, 100% of the block work run; "
            "smallest diff 0.5, threshold 0.4"
        ]

    def test_no_hit_and_no_diff(self, lines):
        compiled = compile_toy(adding_dit(1, 2), max_warmup_steps=8)
        dc.configure(compiled, num_inference_steps=2)
        run_steps(compiled, FAR, NEAR)
        assert lines.of_images == [
            "INFO image of request #1: 0 of 2 steps reused, 100% of the block work run"
        ]

    def test_a_nan_is_not_the_smallest_diff(self, lines):
        compiled = compile_toy(adding_dit(1, 2), residual_diff_threshold=0.4)
        dc.configure(compiled, num_inference_steps=3)
        run_steps(compiled, FAR, NEAR, float("nan"))
        assert lines.of_images[0].endswith("smallest diff 0.5, threshold 0.4")

    @pytest.mark.e2e
    def test_every_image_of_a_pipeline_is_told(self, lines):
        """The pipeline makes new conditioning for each image, so no image is another one's next."""
        model = build_flux(2, 2)
        options = {"inner_backend": "eager", "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
        model.compile(backend="cachedit", options=options)
        pipe = pipeline_around(model)
        draw(pipe)
        draw(pipe)
        assert len(lines.of_images) >= 1


def test_a_descent_after_a_first_ascent_is_counted_as_an_image_of_its_own():
    """The first call was an abort, or the second: nothing tells, and nothing is decided later."""
    compiled = compile_toy(adding_dit(1, 2), residual_diff_threshold=0.0)
    for inputs in toy_steps([60.0, FAR, 60.0, NEAR]):
        run(compiled, inputs)
    assert [s.step for s in dc.summary(compiled).steps] == [0, 1, 0, 1]
