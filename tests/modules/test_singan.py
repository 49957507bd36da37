TINY = [
    "datamodule.num_images=5",
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs_per_stage=2",
    "module.min_size=8",
    "module.scale_factor=0.45",
    "module.width=8",
    "module.scales_per_width=2",
    "module.depth=2",
]
