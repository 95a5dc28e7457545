"""The coverage matrix: which architectures fxfuse takes all the way, proven by laws that run over every model.

``fxfuse coverage`` (or ``python -m fxfuse.coverage``) runs the catalogue, one process per model, and writes a page.
"""
