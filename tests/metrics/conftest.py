"""What the tests of metrics share: refusals of the command line, and places without weights."""

import pytest

from dit_cachegraph import cli


@pytest.fixture
def refused(capsys):
    """Runs the command with what it is given, and hands back the one sentence that it refuses."""

    def sentence(*arguments):
        code = cli.main(["metrics", *map(str, arguments)])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        return captured.err

    return sentence


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """Empty places where the libraries look."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("opened a connection"))
