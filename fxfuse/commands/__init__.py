"""The commands of ``fxfuse``, a file for each or for a few that belong together.

A command says what its options are called, hands them on, and shows what comes back. Whatever is heavy is imported by
the command that needs it, so that help is there at once. ``coverage``, which also runs by itself, stands in
:mod:`fxfuse.coverage.command`.
"""
