"""A small language model that nobody here made, on this machine: fetched by pip, served by llama.cpp on loopback."""
