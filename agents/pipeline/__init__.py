"""Stages in order, each run only if its output is missing or its input changed; and their report."""
