"""Public benchmarks of language models: what is asked, and how answers become scores. One benchmark a file; ``registry`` names them."""
