"""What timm's names tell where no config.json does, for every model that it publishes; and the command for pickled files."""

import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from vit.errors import UserError
from vit.weights.files import refuse_pickle
from vit.weights.pretrained import Found
from vit.weights.timm import PIXELS, _activation, understand

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


@pytest.mark.parametrize("pattern", ["*siglip*", "vit_*clip*", "deit*", "vit_*dino*"])
def test_activations_and_pixels(pattern):
    names = timm.list_models(pattern, module="vision_transformer") + timm.list_models(pattern, module="deit")
    assert len(names) > 5
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        if type(model.blocks[0].mlp).__name__ == "Mlp":  # of a gated one the arrays tell
            assert _activation({}, name) == ACTIVATIONS[type(model.blocks[0].mlp.act).__name__], name
    for name in timm.list_pretrained(pattern):
        if name.startswith(("vit_", "deit", "eva02")):
            known = [(mean, std) for part, (mean, std) in PIXELS.items() if re.search(part, name)]
            config = timm.get_pretrained_cfg(name)
            assert not known or known[0] == (tuple(config.mean), tuple(config.std)), name


@pytest.mark.parametrize("pattern", ["vit_base_patch*augreg*", "vit_*reg*dinov2*", "deit3_small*"])
def test_a_published_model_is_not_taken_for_one_with_holes(pattern):
    names = timm.list_pretrained(pattern)
    assert names
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        arrays = {key: np.broadcast_to(np.float32(0), tuple(x.shape)) for key, x in model.state_dict().items()}
        config, *_ = understand(Found(arrays, {}, {}, {}, name, name))
        assert (config.width, config.depth) == (model.embed_dim, len(model.blocks))


@pytest.mark.parametrize("wrapped", ["", "model", "state_dict", "teacher"])
def test_the_command_for_pickled_files_converts_them(wrapped, tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    state = {"a": matrix.T, "b": matrix, "c": matrix[0]}  # shared memory, and not contiguous
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "weights.pth")
    with pytest.raises(UserError) as error:
        refuse_pickle(tmp_path / "weights.pth")
    code = error.value.fix.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    got = load_file(tmp_path / "model.safetensors")
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], x) for name, x in state.items())
