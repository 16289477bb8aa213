"""Engines that write turns in place of this project's own loop: what one is, and those that there are."""
