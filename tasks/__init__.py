"""The steps of a night: one file per step. They own retries, identity, MLflow and publishing."""
