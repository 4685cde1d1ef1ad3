"""Speed, memory and accuracy of the package beside NNCF: run as ``python -m benchmarks.speed`` from the checkout."""
