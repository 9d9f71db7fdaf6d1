"""Options and markers: see validation/plugin.py, and README.md for how to use them."""

pytest_plugins = ["validation.plugin"]
