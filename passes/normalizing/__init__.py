"""The graph passes of normalisation: each changes a graph module and returns how many changes it made."""
