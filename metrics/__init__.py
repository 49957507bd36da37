"""Metrics of generated images: a pure function and a thin torchmetrics.Metric each, one file per metric.

Imports core and modules.ops alone: no Lightning and no method. `suite.Suite` holds those of one measurement,
`callbacks.sample_metrics` runs it; `backbones/` are the networks of the distances.
"""
