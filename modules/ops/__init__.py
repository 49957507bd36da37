"""Functions on tensors without weights: images, sizes of scales, random draws, nearest neighbors, files of tensors.

May import `core`, torch, torchvision and kornia; every package that handles tensors may import it.
"""
