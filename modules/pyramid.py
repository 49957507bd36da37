"""Methods that train an image pyramid scale by scale: stage s trains scale s, 0 = coarsest."""

from modules.ops.scales import proportional_size
from modules.staged import StagedModule


class PyramidModule(StagedModule):
    """A staged method whose stages are the scales of an image pyramid; it may add stages after the last scale.

    A method sets `sizes`, height and width of each scale, and `image_size`.

    Args:
        num_stages: number of scales, and of further stages.
        epochs_per_stage: one number for all stages, a list with one for each, or three: for the first stage, each one
            between, and the last, whatever the number of scales.
    """

    sizes: list[tuple[int, int]]
    duration_settings = ("epochs_per_stage",)

    def __init__(self, num_stages: int, epochs_per_stage: int | list[int]) -> None:
        blocks = epochs_per_stage
        if isinstance(blocks, list | tuple) and len(blocks) == 3 <= num_stages:
            blocks = [blocks[0], *blocks[1:2] * (num_stages - 2), blocks[2]]
        super().__init__(blocks, num_stages)

    def stage_label(self, stage: int) -> str:
        return f"scale {stage}"

    def stage_size(self, stage: int) -> tuple[int, int]:
        return self.sizes[stage % len(self.sizes)]

    def size_at(self, scale: int, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an output of `size` has at a scale."""
        return proportional_size(size, self.image_size, self.sizes[scale])
