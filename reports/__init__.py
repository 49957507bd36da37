"""Pages about checkpoints and runs: Python prepares plain data, the jinja2 files in `templates/` render them. May import tasks,
callbacks, metrics, experiment, core, modules.base, modules.capabilities, modules.ops, modules.patches.
"""
