"""The library's verbs, one a file: train a recipe, export a run, benchmark files."""
