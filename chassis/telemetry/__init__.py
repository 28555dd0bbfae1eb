"""What a service tells of itself: health, logs, traces."""
