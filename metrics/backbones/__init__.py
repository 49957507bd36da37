"""Frozen feature extractors, one file per family; `registry.load_backbone` chooses one. Their names are part of every metric's
key, so that numbers of two backbones are never compared. Imports torchvision and torch_fidelity.
"""
