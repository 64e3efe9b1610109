"""Plugins of our own. They import only the bare `attnbench`, like anybody's."""
