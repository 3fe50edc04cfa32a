"""Prompts from a file: one for each picture, and for the metrics that judge by them alone."""

import imageio.v3 as iio
import numpy as np
import pytest

from dit_cachegraph import cli
from dit_cachegraph.metrics import CannotMeasure, measure, networks
from dit_cachegraph.metrics.media import Item
from dit_cachegraph.metrics.prompts import read_prompts


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.json"])
def test_prompts_are_in_the_order_of_the_names(name, tmp_path):
    path = tmp_path / name
    path.write_text('["a red cat", "a dog"]' if name.endswith("json") else "a red cat\na dog\n")
    items = [Item(tmp_path / "0.png"), Item(tmp_path / "1.png")]
    assert read_prompts(path, items) == ["a red cat", "a dog"]


@pytest.mark.parametrize("num_prompts", [0, 1, 3])
def test_one_prompt_for_each_file(num_prompts, tmp_path):
    items = [Item(tmp_path / "0.png"), Item(tmp_path / "1.png")]
    path = tmp_path / "prompts.txt"
    path.write_text("a\n" * num_prompts)
    with pytest.raises(CannotMeasure, match=f"{num_prompts} prompts for the 2 files"):
        read_prompts(path, items)


def test_prompts_that_are_no_list_of_texts_are_refused(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('{"a": 1}')
    with pytest.raises(CannotMeasure, match="JSON list of texts"):
        read_prompts(path, [])
    with pytest.raises(CannotMeasure, match="does not exist"):
        read_prompts(tmp_path / "none", [])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("latin.txt", "ein rotes Kätzchen".encode("latin-1"), "latin.txt is no text in UTF-8"),
        ("latin.json", '["Kätzchen"]'.encode("latin-1"), "latin.json is no text in UTF-8"),
        ("cut.json", b'["a red cat", ', "cut.json is no JSON (Expecting value: line 1 column 15"),
    ],
)
def test_what_is_no_text_or_no_json_is_a_sentence(
    name, content, says, tmp_path, refused, monkeypatch
):
    monkeypatch.setattr(networks, "clip", lambda: lambda _prompt, _frame: 1.0)
    iio.imwrite(tmp_path / "0.png", np.zeros((8, 8, 3), np.uint8))
    prompts = tmp_path / name
    prompts.write_bytes(content)
    sentence = refused("clip_score", tmp_path / "0.png", tmp_path / "0.png", "--prompts", prompts)
    assert says in sentence


def test_the_file_of_prompts_may_be_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "clip", lambda: lambda prompt, _frame: float(len(prompt)))
    picture, prompts = tmp_path / "0.png", tmp_path / "prompts.txt"
    iio.imwrite(picture, np.zeros((8, 8, 3), np.uint8))
    prompts.write_text("a red cat")
    (score,) = measure("clip_score", str(picture), [], str(prompts))
    assert score.items == {"0": 9.0}


def test_prompts_go_with_their_metrics_alone(tmp_path, capsys):
    path = tmp_path / "0.png"
    assert cli.main(["metrics", "clip_score", str(path), str(path)]) == 2
    assert "judges by the prompts" in capsys.readouterr().err
    assert cli.main(["metrics", "psnr", str(path), str(path), "--prompts", str(path)]) == 2
    assert "knows nothing of prompts" in capsys.readouterr().err
