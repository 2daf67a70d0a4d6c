"""Content hashes of loaded weights: the same for one file, several shards, or another folder."""

import hashlib

import torch
from torch import nn

from vivant.placement import pages


def weights_digest(module: nn.Module, release: bool = False) -> str:
    """sha256 over names, types, shapes and bytes of all tensors, in the order of their names.

    Args:
        module: holds the tensors.
        release: give each back to its file after it was read, so that not all of them are in memory at once.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
        if release and tensor.device.type == "cpu":
            pages.give_back(pages.spans([tensor]))
    return f"sha256:{digest.hexdigest()}"
