"""A native checkpoint run from its files."""

import pytest
import torch

from adapt.models.importing import import_checkpoint
from adapt.models.native_source import open_native
from adapt.models.streamed import NativeForward


@pytest.mark.parametrize("kind", ["internlm2", "mono", "phi3"])
def test_a_row_does_not_depend_on_the_one_before(make_original, tmp_path, kind):
    """The ropes of these change beyond 64, or 32, positions, and by how far a row goes."""
    source = make_original(tmp_path / "source", kind)
    import_checkpoint(source, tmp_path / "out", verify=False, image_token_id=5)
    native = open_native(tmp_path / "out")

    def logits(forward, length):
        tokens = torch.arange(length) % 90 + 6
        return forward.logits(tokens, torch.arange(length))

    def fresh():
        return NativeForward(native.layout, native.config, native.checkpoint)

    used = fresh()
    lengths = (200, 100, 20)
    found = [logits(used, length) for length in lengths]
    for length, one in zip(lengths, found, strict=True):
        assert torch.equal(one, logits(fresh(), length))
