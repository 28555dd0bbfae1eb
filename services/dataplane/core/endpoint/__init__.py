"""The life of an endpoint as values: admission, the order of steps, repairs, marks."""
