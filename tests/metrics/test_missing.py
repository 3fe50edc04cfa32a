"""What the command line says where a package or a weight of a network's metric is missing."""

import sys

import pytest

HUB = "https://huggingface.co/THUDM/ImageReward/resolve/main"
ALEXNET = "alexnet-owt-7be5be79.pth"


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Puts a package on the import path, of the name and the code that it is given."""

    def put(name, code=""):
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code)
        # Where the real one is installed, another test may have imported it.
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(folder.parent)

    yield put
    for name in ("lpips", "ImageReward"):
        sys.modules.pop(name, None)


def asked_for(sentence):
    """The address that a refusal names, and the file that is to be put there."""
    address, target = sentence.strip().split(": get ")[1].split(" and put it at ")
    return address, target


def put_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def put_tokenizer(cache):
    folder = cache / "models--bert-base-uncased"
    put_file(folder / "snapshots" / "0" / "vocab.txt")
    put_file(folder / "refs" / "main")
    (folder / "refs" / "main").write_text("0")


def test_lpips_says_where_its_weights_go(fake_package, no_weights, tmp_path, refused):
    fake_package("lpips")
    sentence = refused("lpips", "a", "b")
    assert "lpips needs weights that are not here" in sentence
    target = tmp_path / "torch/hub/checkpoints" / ALEXNET
    assert asked_for(sentence) == (f"https://download.pytorch.org/models/{ALEXNET}", str(target))


def test_an_lpips_that_cannot_be_imported_says_why(fake_package, no_weights, tmp_path, refused):
    put_file(tmp_path / "torch/hub/checkpoints" / ALEXNET)
    fake_package("lpips", "raise RuntimeError('operator torchvision::nms does not exist')")
    sentence = refused("lpips", "a", "b")
    assert "cannot be imported (operator torchvision::nms does not exist)" in sentence
    assert "needs the torchvision of this torch" in sentence


def test_image_reward_says_where_each_of_its_files_goes(
    fake_package, no_weights, tmp_path, refused
):
    fake_package("ImageReward", "raise ImportError('an old transformers is needed')")
    arguments = ("image_reward", "a", "b", "--prompts", "c")
    sentence = refused(*arguments)
    assert "hf download bert-base-uncased" in sentence
    assert f"put the folder models--bert-base-uncased into {tmp_path / 'hub'}" in sentence
    put_tokenizer(tmp_path / "hub")
    for name in ("ImageReward.pt", "med_config.json"):
        target = tmp_path / ".cache" / "ImageReward" / name
        assert asked_for(refused(*arguments)) == (f"{HUB}/{name}", str(target))
        put_file(target)
    sentence = refused(*arguments)
    assert "ImageReward cannot be imported (an old transformers is needed)" in sentence


@pytest.mark.parametrize(
    ("metric", "package"),
    [
        ("fid", "torchmetrics"),
        ("psnr", "skimage"),
        ("lpips", "lpips"),
        ("clip_score", "transformers"),
    ],
)
def test_missing_packages_are_one_sentence(metric, package, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = (
        f'error: {metric} needs {package}: run pip install "dit_cachegraph[metrics]" (in a '
        'checkout, pip install -e ".[metrics]")\n'
    )
    assert refused(metric, "a", "b") == sentence


def test_image_reward_says_that_it_wants_an_environment(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    sentence = refused("image_reward", "a", "b", "--prompts", "c")
    assert "needs the package image-reward" in sentence
    assert "give it an environment of its own" in sentence
