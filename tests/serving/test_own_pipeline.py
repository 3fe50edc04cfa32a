"""A pipeline of diffusers from a folder, with text encoders and a VAE, in sizes of its own."""

import string

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import dit_cachegraph as dc
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.job import png_of
from dit_cachegraph.serving.pipeline import PipelineStudio
from support.serving_runs import served
from support.tiny_models import NUM_CHANNELS, POOLED_DIM, build_sd3

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
TOKENS = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
VOCABULARY = [*TOKENS, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
SIZES = ((32, 32), (32, 16))


def text_encoder(seed: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=4,
        intermediate_size=8,
        projection_dim=POOLED_DIM // 2,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config).eval()


def tokenizer() -> CLIPTokenizer:
    numbers = {token: i for i, token in enumerate(VOCABULARY)}
    return CLIPTokenizer(vocab=numbers, merges=[], model_max_length=77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion 3, as `save_pretrained` leaves it."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=NUM_CHANNELS,
        layers_per_block=1,
        norm_num_groups=1,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=build_sd3(4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=text_encoder(1),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(2),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    path = tmp_path_factory.mktemp("sd3")
    pipe.save_pretrained(path)
    return path


class Watched(PipelineStudio):
    def load(self):
        self.pipe = super().load()
        return self.pipe


@pytest.fixture(scope="module")
def studio(folder):
    return Watched(folder, SIZES, "eager")


@pytest.fixture(scope="module")
def client(studio):
    with served(studio) as client:
        client.wait_until_ready()
        yield client


@pytest.mark.parametrize(("width", "height"), [(None, None), *SIZES])
def test_each_size_is_drawn_as_alone(client, studio, width, height):
    num_compiles = dc.summary(studio.pipe).num_compiles
    ask = Ask(prompt="some text", num_steps=8, seed=5, width=width, height=height)
    size = {} if width is None else {"width": width, "height": height}
    answer = client.generate(prompt="some text", num_steps=8, seed=5, **size)
    assert answer.status == 200
    with dc.request("alone", preset="balanced", num_inference_steps=8) as handle:
        picture = studio.painter().paint(ask, lambda preview: None)
    handle.end()
    assert picture.size == (width or 32, height or 32)
    assert answer.body == png_of(picture)
    assert dc.summary(studio.pipe).num_compiles == num_compiles
    assert dc.summary(studio.pipe).state_nbytes == 0


def test_steps_are_told_without_a_preview(client, studio):
    with client.stream(prompt="some text", num_steps=6, preset="fast") as events:
        told = [(name, data) for name, data in events if name in ("step", "done")]
    assert [name for name, _ in told] == [*["step"] * 6, "done"]
    assert {data["preview"] for name, data in told if name == "step"} == {None}
    decided = [d["hit"] for name, data in told if name == "step" for d in data["decisions"]]
    done = told[-1][1]
    assert len(decided) == done["num_hits"] + done["num_computed"] >= 6
    assert sum(decided) == done["num_hits"]


def test_how_many_calls_a_picture_makes(client, folder, studio):
    ask = Ask(prompt="some text", num_steps=8)
    assert studio.num_calls_of(ask) == 8
    assert PipelineStudio(folder, SIZES, "eager").num_calls_of(ask) is None, "nothing is loaded"
    scheduler = studio.pipe.scheduler
    studio.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    assert studio.num_calls_of(ask) is None, "it calls the model twice a step"
    studio.pipe.scheduler = scheduler


def test_other_sizes_are_refused(client):
    answer = client.generate(prompt="some text", width=128, height=128)
    assert answer.status == 422
    assert "128 x 128 isn't drawn here: 32 x 32, 32 x 16 is" in answer.json["error"]
