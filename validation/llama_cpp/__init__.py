"""A third party's check of the embedded engine: the same checkpoint in llama.cpp must give the same greedy texts."""
