"""What older versions of torch can't save is refused by name."""

import pytest
import torch

import dit_cachegraph as dc
from support.toy_dits import GatedBlock, ReadingDiT

pytestmark = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) >= "2.13", reason="this torch saves"
)


def test_an_older_torch_is_told(tmp_path):
    model = ReadingDiT([GatedBlock() for _ in range(3)]).eval()
    with pytest.raises(dc.CannotSave, match=r"saving needs torch 2.13 or newer, and this is 2"):
        dc.precompile(model, lambda model: None, save=tmp_path)
    with pytest.warns(dc.NotLoadedWarning, match="saving needs torch 2.13"):
        dc.load(model, tmp_path)
