"""Content hashes of loaded weights: the same for one file, several shards, or another folder."""

import hashlib

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return f"sha256:{digest.hexdigest()}"
