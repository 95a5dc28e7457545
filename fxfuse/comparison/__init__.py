"""Compare methods: one recipe, many methods and seeds, one table."""
