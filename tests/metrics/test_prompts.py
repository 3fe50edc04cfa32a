"""Prompts from a file: one for each picture, and for the metrics that judge by them alone."""

import pytest

from dit_cachegraph import cli
from dit_cachegraph.metrics import CannotMeasure
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


def test_prompts_go_with_their_metrics_alone(tmp_path, capsys):
    path = tmp_path / "0.png"
    assert cli.main(["metrics", "clip_score", str(path), str(path)]) == 2
    assert "judges by the prompts" in capsys.readouterr().err
    assert cli.main(["metrics", "psnr", str(path), str(path), "--prompts", str(path)]) == 2
    assert "knows nothing of prompts" in capsys.readouterr().err
