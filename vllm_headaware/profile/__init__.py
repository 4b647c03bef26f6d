"""Head profiles: measured scores per KV head of a model, with where they come from."""
