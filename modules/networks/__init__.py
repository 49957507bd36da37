"""Networks: `torch.nn.Module`s with a docstring of shapes, shared by methods or large enough for a file.

May import `core` and `modules.ops`; no Lightning.
"""
