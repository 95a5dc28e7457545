"""The stages of :func:`fxfuse.pipeline.fuse`, in its order: what is asked for, the data, the parents' analysis, the
grouped and rewritten network, its training, and the comparison. Each takes what those before it have made."""
