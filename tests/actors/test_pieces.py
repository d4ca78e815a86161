import pytest
import torch

from raydd.actors.pieces import PIECE_BYTES, Pieces


@pytest.mark.parametrize("shape", [(), (0,), (1,), (700, 3, 16, 16), (PIECE_BYTES // 4,), (PIECE_BYTES // 4 + 1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_joined_is_what_was_cut(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (torch.randn(shape) * 100).to(dtype)
    cut = Pieces.cut(tensor)
    joined = cut.join()
    assert joined.dtype == dtype and joined.shape == shape and torch.equal(joined, tensor)
    assert all(piece.nbytes < 2**20 for piece in cut.pieces)
    before = tensor.clone()
    joined.zero_()
    assert torch.equal(tensor, before)


def test_what_is_not_contiguous_or_not_writable() -> None:
    tensor = torch.randn(6, 4, requires_grad=True)
    assert torch.equal(Pieces.cut(tensor.T).join(), tensor.detach().T)
    cut = Pieces.cut(tensor)
    cut.pieces[0].flags.writeable = False
    assert torch.equal(cut.join(), tensor.detach())
