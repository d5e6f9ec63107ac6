"""Array functions without state or parameters, each written for one image; `jax.vmap` batches."""
