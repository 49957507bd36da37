"""Pages about checkpoints and runs: Python prepares plain data, the jinja2 files in `templates/` render them.

What is measured belongs in `metrics/`, what a model is used for in `tasks/`.
May import tasks, callbacks, metrics, experiment, core, modules.base, modules.ops, modules.patches.
"""
