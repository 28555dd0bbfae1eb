"""The endpoint lifecycle as values: admission, the order of steps, repairs, marks."""
