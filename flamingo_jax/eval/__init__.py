"""Using a model: prompts to text, choices to likelihoods, and the benchmarks made of both."""
