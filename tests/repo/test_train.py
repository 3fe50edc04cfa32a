"""The training of the models that draw: drawings, codec, loop, and what the check prints."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.train import __main__ as command
from bench.train import check
from bench.train.clips import CLIPS
from bench.train.flow import spread_levels
from bench.train.reader import accuracy, get_reader, make_reader, put_reader
from bench.train.recipes import FLUX, RECIPES, WAN
from bench.train.sampling import draw, embed, load_pipeline
from bench.train.scenes import BUSY_SCENES, SCENES
from bench.train.shelf import FIGURES, WEIGHTS, kept_in, put_model
from bench.train.strokes import COLORS, GROUNDS
from bench.train.tasks import drawing_task, reading_task
from bench.train.trainer import AnotherRun, Plan, Trainer
from dit_cachegraph.demo.codec import decode, encode
from dit_cachegraph.demo.flux_scenes import load_model
from dit_cachegraph.demo.run import DemoSettings

pytestmark = pytest.mark.e2e

SMALL = {
    "flux": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1},
    "busy-flux": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1},
    "wan": {"num_layers": 1, "num_attention_heads": 1, "ffn_dim": 32},
}
DRAWING_SHAPES = {"flux": (3, 64, 64), "busy-flux": (3, 64, 64), "wan": (8, 3, 32, 32)}


def drawings_of(world, count=240, seed=3):
    drawings, picks = world.draw(count, Generator().manual_seed(seed))
    columns = dict(zip(world.slots, picks.unbind(1), strict=True))
    return drawings, picks, columns


def small_recipe(name):
    recipe = RECIPES[name]
    return replace(recipe, config={**recipe.config, **SMALL[name]})


def few_steps(num_steps, batch_size=8):
    return Plan(seed=5, device=torch.device("cpu"), batch_size=batch_size, num_steps=num_steps)


@torch.no_grad()
def loss_now(trainer):
    """On drawings of its own, the same at each call."""
    return trainer.task.loss(trainer.model, 32, Generator().manual_seed(99)).item()


def nearest_name(colors, named):
    """[B] which of the named colours is nearest."""
    palette = torch.tensor(list(named.values()))
    return torch.cdist(colors, palette).argmin(1)


@pytest.mark.parametrize(
    "world", [SCENES, BUSY_SCENES, CLIPS], ids=["scenes", "busy scenes", "clips"]
)
def test_drawings_follow_from_the_seed_alone(world):
    drawings, picks, _ = drawings_of(world, count=6)
    again, picks_again, _ = drawings_of(world, count=6)
    others, _, _ = drawings_of(world, count=6, seed=4)
    assert torch.equal(drawings, again)
    assert torch.equal(picks, picks_again)
    assert not torch.equal(drawings, others)
    assert drawings.min() >= -1
    assert drawings.max() <= 1
    _, many, _ = drawings_of(world)
    for i, words in enumerate(world.slots.values()):
        assert set(many[:, i].tolist()) == set(range(len(words)))


@pytest.mark.parametrize(
    ("world", "aside"), [(SCENES, 0.42), (BUSY_SCENES, 0.45)], ids=["scenes", "busy scenes"]
)
def test_a_scene_shows_the_color_at_the_place_on_the_ground(world, aside):
    drawings, _, columns = drawings_of(world)
    shapes, finishes = world.slots["shape"], world.slots["finish"]
    solid = (columns["shape"] != shapes.index("ring")) & (
        columns["finish"] == finishes.index("plain")
    )
    places = torch.tensor(
        [[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [-1, -1], [1, -1], [-1, 1], [1, 1]]
    )
    centre = (31.5 * (1 + aside * places[columns["place"]])).round().long()
    seen = (drawings[torch.arange(240), :, centre[:, 1], centre[:, 0]] + 1) / 2
    right = nearest_name(seen, COLORS) == columns["color"]
    assert right[solid].float().mean() > 0.95
    assert right[columns["shape"] == shapes.index("ring")].float().mean() < 0.5
    whole = (drawings.flatten(2).median(2).values + 1) / 2
    small = columns["size"] == 0
    assert (nearest_name(whole, GROUNDS) == columns["ground"])[small].float().mean() > 0.9


def test_a_clip_moves_as_its_prompt_says():
    clips, _, columns = drawings_of(CLIPS)
    palette = torch.tensor(list(COLORS.values()))[columns["color"]] * 2 - 1
    near = (clips - palette[:, None, :, None, None]).norm(dim=2) < 0.6
    # Middle of the frame, so that all of the shape is seen; away from grounds of its own colour.
    chosen = (columns["place"] == 0) & (near.float().mean((1, 2, 3)) < 0.4)
    area = near.sum((2, 3)).float().clamp(min=1)
    line = torch.arange(32.0)
    x = (near.sum(2) * line).sum(2) / area
    y = (near.sum(3) * line).sum(2) / area
    moved = {}
    for motion in CLIPS.slots["motion"]:
        rows = chosen & (columns["motion"] == CLIPS.slots["motion"].index(motion))
        assert rows.sum() > 3
        growth = (area[rows, -1] / area[rows, 0]).median().item()
        shift = [(c[rows, -1] - c[rows, 0]).median().item() for c in (x, y)]
        moved[motion] = (round(shift[0] / 14), round(shift[1] / 14), round(math.log(growth) / 2.2))
    assert moved == {
        "rests": (0, 0, 0),
        "rightward": (1, 0, 0),
        "leftward": (-1, 0, 0),
        "downward": (0, 1, 0),
        "upward": (0, -1, 0),
        "grows": (0, 0, 1),
        "shrinks": (0, 0, -1),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_codec_loses_little_and_packing_nothing(name):
    recipe = RECIPES[name]
    drawings = drawings_of(recipe.world, count=32)[0]
    latents = encode(drawings)
    kept = decode(latents)
    assert 33 < check.psnr_db(kept, drawings) < 40
    torch.testing.assert_close(encode(kept), latents, atol=1e-4, rtol=1e-4)
    assert torch.equal(recipe.unpack(recipe.pack(latents)), latents)
    assert 0.7 < latents.std() < 1.3
    assert recipe.pack(latents).shape[1:] == recipe.latent_shape


def test_prompts_name_every_word():
    assert SCENES.prompt(torch.tensor([0, 1, 2, 3, 4, 5])) == (
        "a small striped blue ring at bottom on beige"
    )
    assert CLIPS.prompt(torch.tensor([7, 0, 1, 2, 0])) == (
        "a black circle at left leftward on gray"
    )
    picks = SCENES.every_kind(36)
    assert torch.equal(picks, SCENES.every_kind(36))
    for i, words in enumerate(SCENES.slots.values()):
        assert picks[:, i].bincount().tolist() == [36 // len(words)] * len(words) or len(words) == 8
    assert SCENES.word_indices(picks).max() == len(SCENES.words) - 1


@pytest.mark.parametrize("name", RECIPES)
def test_training_learns_and_resumes_exactly(name, tmp_path):
    task = drawing_task(small_recipe(name))
    through, halted = Trainer(task, few_steps(24)), Trainer(task, few_steps(24))
    first_loss = loss_now(through)
    for _ in range(24):
        through.take_step()
    for _ in range(9):
        halted.take_step()
    halted.save(tmp_path / "a.pt")
    resumed = Trainer(task, few_steps(24))
    resumed.load(tmp_path / "a.pt")
    resumed.run(tmp_path / "b.pt", seconds_a_checkpoint=1e9)
    assert (resumed.step, through.step) == (24, 24)
    for key, weight in through.average.items():
        assert torch.equal(resumed.average[key], weight), key
    assert loss_now(through) < 0.98 * first_loss


def test_a_stop_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    def saves_half(_content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    trainer = Trainer(reading_task(FLUX), few_steps(10))
    trainer.step = 3
    trainer.save(tmp_path / "a.pt")
    monkeypatch.setattr(torch, "save", saves_half)
    with pytest.raises(KeyboardInterrupt):
        trainer.save(tmp_path / "a.pt")
    resumed = Trainer(reading_task(FLUX), few_steps(10))
    resumed.load(tmp_path / "a.pt")
    assert resumed.step == 3


def test_a_reader_learns():
    trainer = Trainer(reading_task(FLUX), few_steps(40, batch_size=16))
    first_loss = loss_now(trainer)
    for _ in range(40):
        trainer.take_step()
    assert loss_now(trainer) < 0.9 * first_loss


def test_a_plan_ends_by_steps_or_by_minutes():
    plan = replace(few_steps(10), minutes=2)
    assert plan.progress(5, 30) == 0.5
    assert plan.progress(5, 90) == 0.75
    assert few_steps(10).progress(10, 1e9) == 1


@pytest.fixture
def train(tmp_path):
    """Runs the command, with a shelf of its own; the figures that it kept there."""
    shelf = tmp_path / "shelf"
    where = ["--runs", str(tmp_path / "runs"), "--shelf", str(shelf)]

    def run(*arguments, minutes=0.005):
        how = ["--device", "cpu", "--batch", "2", "--minutes", str(minutes)]
        command.main(["flux-reader", *where, *how, *arguments])
        return json.loads((shelf / FLUX.folder / FIGURES).read_text())["flux-reader"]

    return run


def test_the_command_resumes_and_begins_with_kept_weights(train, capsys):
    first = train()
    assert first["drawings"] == 2 * first["steps"] > 0
    assert train()["steps"] == first["steps"]
    assert f"goes on from step {first['steps']} " in capsys.readouterr().out
    assert train(minutes=0.02)["steps"] > first["steps"]
    assert train("--fresh", "--from-shelf")["progress"] >= 1
    assert "begins with the weights" in capsys.readouterr().out


def test_figures_keep_the_runs_that_the_first_weights_came_from(train):
    scratch = train("--seed", "7")
    given = "python -m bench.train flux-reader --minutes 0.005 --seed 7 --batch 2 --device cpu"
    assert scratch["command"] == given
    assert not {"before", "in_all"} & set(scratch)
    second = train("--seed", "7", "--fresh", "--from-shelf")
    assert second["command"] == f"{given} --from-shelf"
    assert second["before"] == [scratch]
    third = train("--batch", "3", "--fresh", "--from-shelf")
    own = {name: second[name] for name in scratch}
    assert third["before"] == [scratch, own]
    drawn = [run["drawings"] for run in (scratch, second, third)]
    assert third["in_all"]["drawings"] == sum(drawn) > max(drawn)
    assert "before" not in train("--fresh")


@pytest.mark.parametrize("asked", [(), ("--from-shelf",)], ids=["without", "with"])
def test_a_resumed_run_knows_that_it_began_with_kept_weights(asked, train, capsys):
    scratch = train()
    began = train("--fresh", "--from-shelf")
    resumed = train(*asked)
    assert f"goes on from step {began['steps']} " in capsys.readouterr().out
    assert resumed["command"].endswith(" --from-shelf")
    assert resumed["before"] == [scratch]
    assert resumed["in_all"]["drawings"] == scratch["drawings"] + resumed["drawings"]


def test_minutes_in_all_are_those_of_all_runs():
    trainer = Trainer(reading_task(FLUX), few_steps(10))
    trainer.seconds, trainer.step = 90.0, 3
    trainer.before = [{"drawings": 100, "minutes": 2.2}, {"drawings": 10, "minutes": 0.5}]
    figures = command.figures_of(trainer)
    assert (figures["minutes"], figures["drawings"]) == (1.5, 24)
    assert figures["in_all"] == {"minutes": 4.2, "drawings": 134}


def test_a_run_too_short_for_a_mean_has_no_loss():
    trainer = Trainer(reading_task(FLUX), few_steps(10))
    assert command.figures_of(trainer)["loss"] is None
    trainer.loss = 0.123456
    assert command.figures_of(trainer)["loss"] == 0.1235


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--seed", "1"), "of seed 0 and batch 2, not of seed 1 and batch 2"),
        (("--batch", "3"), "of seed 0 and batch 2, not of seed 0 and batch 3"),
    ],
)
def test_a_checkpoint_of_another_seed_or_batch_is_refused(other, named, train):
    train()
    with pytest.raises(SystemExit, match=f"{named}: give the same --seed and --batch .* --fresh"):
        train(*other)
    assert " ".join(other) in train(*other, "--fresh")["command"]


def test_a_checkpoint_that_names_no_seed_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    trainer = Trainer(reading_task(FLUX), few_steps(10))
    trainer.save(path)
    state = torch.load(path)
    del state["seed"], state["batch_size"]
    torch.save(state, path)
    with pytest.raises(AnotherRun, match="of seed unknown and batch unknown, not of seed 5"):
        trainer.load(path)


@pytest.mark.parametrize("name", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_the_check_prints_and_keeps_its_figures(name, tmp_path, capsys):
    recipe = small_recipe(name)
    folder = tmp_path / recipe.folder
    torch.manual_seed(0)
    put_model(recipe, folder, dict(recipe.build().named_parameters()))
    put_reader(folder, make_reader(recipe.world).state_dict())
    check.main(
        [name, "--prompts", "4", "--steps", "2", "--shelf", str(tmp_path)]
        + ["--pictures", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert "4 prompts, 2 Euler steps" in printed
    figures = json.loads((folder / "figures.json").read_text())["check"]
    assert set(figures["read_back"]) == {str(guidance) for guidance in check.GUIDANCES}
    for row in figures["read_back"].values():
        assert set(row) == set(recipe.world.slots)
        assert all(share in {0, 0.25, 0.5, 0.75, 1} for share in row.values())
    assert f"{figures['half_the_steps_db']['5.0']:.1f} dB" in printed
    assert len(list(tmp_path.glob("*.png"))) == len(check.GUIDANCES_SHOWN)


@pytest.mark.parametrize("name", RECIPES)
def test_a_put_model_comes_back_and_heeds_guidance(name, tmp_path):
    recipe = small_recipe(name)
    model = recipe.build()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    put_model(recipe, tmp_path, dict(model.named_parameters()))
    back = load_model(recipe.model_class, tmp_path)
    for key, weight in back.named_parameters():
        assert torch.equal(weight, model.get_parameter(key).half().float()), key
    pipe, text = (
        load_pipeline(recipe, tmp_path),
        embed(recipe, tmp_path, recipe.world.every_kind(2)),
    )
    plain, same, guided = (
        draw(recipe, pipe, text, num_steps=2, guidance=guidance) for guidance in (1.0, 1.0, 3.0)
    )
    assert plain.shape == (2, *DRAWING_SHAPES[name])
    assert torch.equal(plain, same)
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("name", RECIPES)
def test_the_kept_model_is_small_and_draws_the_named_ground(name):
    recipe = RECIPES[name]
    folder = kept_in(recipe.folder)
    assert (folder / WEIGHTS).stat().st_size < 12e6
    figures = json.loads((folder / FIGURES).read_text())
    assert {name, f"{name}-reader", "check"} <= set(figures)
    read_back = figures["check"]["read_back"]["5.0"]
    assert min(read_back["color"], read_back["place"]) >= 0.9 and read_back["shape"] >= 0.7
    if recipe is FLUX:
        by_default = figures["check"]["read_back"][str(DemoSettings().guidance)]
        assert min(by_default["color"], by_default["place"]) >= 0.95 and by_default["shape"] >= 0.9
    picks = recipe.world.every_kind(8)
    pipe, text = load_pipeline(recipe, folder), embed(recipe, folder, picks)
    drawings = draw(recipe, pipe, text, num_steps=6, guidance=1.0)
    reader = get_reader(folder, recipe.world)
    assert accuracy(recipe.world, reader, drawings, picks)["ground"] >= 0.75
    strangers = accuracy(recipe.world, reader, drawings, picks.roll(1, 0))["ground"]
    assert strangers < 0.5


def test_psnr_is_the_mean_over_drawings():
    flat = torch.zeros(2, 3, 4, 4)
    off = flat.clone()
    off[0] += 0.2
    off[1] += 0.02
    assert check.psnr_db(off, flat) == pytest.approx(30.0, abs=1e-3)


def test_what_tells_wan_where_it_is_stands_still():
    latents = WAN.pack(encode(drawings_of(CLIPS, count=2)[0]))
    start = WAN.start(torch.randn(2, *WAN.latent_shape))
    assert torch.equal(start[:, 12:], latents[:, 12:])
    assert not torch.equal(start[:, :12], latents[:, :12])
    frame, row, column = latents[0, 12:]
    assert frame[0].unique().numel() == 1
    assert (frame[0, 0, 0], frame[7, 0, 0]) == (-1.5, 1.5)
    assert (row[0, 7, 0], column[0, 0, 7], row[0, 0, 7]) == (1.5, 1.5, -1.5)


def test_nothing_stands_beside_the_shape_but_in_busy_scenes():
    def strays(world):
        """The share of drawings with another color than the ground's, far from the shape."""
        drawings, _, columns = drawings_of(world, count=720)
        small = (columns["size"] == 0) & (columns["place"] == 0)
        grounds = torch.tensor(list(GROUNDS.values()))[columns["ground"][small]]
        off = ((drawings[small] + 1) / 2 - grounds[:, :, None, None]).abs().amax(1)
        off[:, 12:52, 12:52] = 0
        assert len(off) > 5
        return (off.flatten(1).amax(1) > 0.45).float().mean()

    assert strays(SCENES) == 0
    assert strays(BUSY_SCENES) > 0.3


def test_more_levels_are_high_around_a_higher_mean():
    dice = Generator().manual_seed(0)
    even, high = (spread_levels(mean, 999, dice) for mean in (0.0, 0.5))
    assert even.median() == pytest.approx(0.5, abs=0.01)
    assert high.median() == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)), abs=0.01)
    assert 0 < high.min() < high.max() < 1
