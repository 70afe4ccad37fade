"""Rows of a tensor picked by index, moved in the widest words that their size allows."""

import torch
from torch import Tensor

_WORD = 8


def take_rows(tensor: Tensor, ids: Tensor) -> Tensor:
    """`tensor[ids]`: [n, ...] for a contiguous `tensor` [E, ...] of any dtype and indices int64 [n].

    An indexing kernel moves an element at a time: bytes, as packed weights are, would go eight times slower than words.
    """
    row = tensor[0].numel() * tensor.itemsize
    if row % _WORD or tensor.data_ptr() % _WORD or not tensor.is_contiguous():
        return tensor.view(torch.uint8)[ids].view(tensor.dtype) if tensor.itemsize == 1 else tensor[ids]
    words = tensor.view(tensor.shape[0], -1).view(torch.int64)
    return words[ids].view(tensor.dtype).view(*ids.shape, *tensor.shape[1:])
