"""What callbacks know of a method's stages."""

from lightning import LightningModule


def ends_stage(module: LightningModule, epoch: int) -> bool:
    """True if `epoch` is the last of a stage; False for methods without stages."""
    if not hasattr(module, "stage_at"):
        return False
    return module.stage_at(epoch) != module.stage_at(epoch + 1) or module.finished(epoch + 1)
